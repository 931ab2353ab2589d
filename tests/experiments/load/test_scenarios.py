"""``experiments.load`` as a command, on fake servers."""

import json
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.load import aborts, attacks, sessions, streams, tenants
from experiments.load import scenarios as load


@pytest.fixture
def started(monkeypatch):
    """The flags of each server; each scenario has one figure."""
    flags_of = []

    @asynccontextmanager
    async def server_process(flags):
        flags_of.append([*flags])
        yield SimpleNamespace(url="http://127.0.0.1:1", pid=1)

    monkeypatch.setattr(load, "server_process", server_process)

    def figures(**values):
        async def measure(*_):
            return values

        return measure

    monkeypatch.setattr(streams, "measure", figures(unclear=0, health_p99_ms=5.0))
    monkeypatch.setattr(attacks, "measure", figures(unclear=0))
    monkeypatch.setattr(aborts, "measure", figures(unclear=1))
    monkeypatch.setattr(sessions, "measure", figures(unclear=0, kept_share=0.5))
    monkeypatch.setattr(tenants, "measure", figures(unclear=0))
    return flags_of


def test_all_scenarios_run_on_two_servers(started, command, tmp_path):
    path = tmp_path / "out.json"
    status, out, _ = command(load, "--quick", "--json", path)
    figures = json.loads(path.read_text())
    assert figures["streams_health_p99_ms"] == 5.0
    assert figures["sessions_kept_share"] == 0.5
    assert {"hostile_unclear", "aborts_unclear", "tenants_unclear"} <= figures.keys()
    assert status == 1  # aborts_unclear
    assert "at most 200" in out
    first, second = started
    assert "--api-key-file" not in first
    assert Path(second[-1]).name == "keys.toml"


def test_one_scenario_runs_alone(started, command):
    status, out, _ = command(load, "--only", "tenants")
    assert status == 0
    assert "streams" not in out
    assert len(started) == 1
