"""``experiments.engine_bench`` with an engine that takes no time."""

import json
from types import SimpleNamespace

import pytest

import kvflow_jax
from experiments.bench import engine_bench
from tests.experiments.bench.fake_llm import FakeLLM


@pytest.fixture
def fake_llm(monkeypatch):
    monkeypatch.setattr(kvflow_jax, "LLM", FakeLLM)
    monkeypatch.setattr(
        engine_bench.BandwidthCeiling, "bytes_per_s", lambda self, repeats=5: 1e9, raising=True
    )


@pytest.fixture
def children(monkeypatch):
    """Replaces measured processes; returns their commands."""
    commands = []

    def run(command, **_):
        commands.append(command)
        figures = {"first_token_at": 1e10, "rss_overhead_ratio": 1.5, "rss_gib": 1.0}
        figures["weights_and_pool_gib"] = 0.5
        return SimpleNamespace(returncode=0, stdout=f"log\n{json.dumps(figures)}\n")

    monkeypatch.setattr(engine_bench, "subprocess", SimpleNamespace(run=run, PIPE=-1))
    return commands


def test_a_quick_benchmark_measures_everything_with_a_tiny_model(
    command, fake_llm, children, tmp_path
):
    path = tmp_path / "out.json"
    assert command(engine_bench, "--quick", "--json", path)[0] == 0
    figures = json.loads(path.read_text())
    assert set(engine_bench.REACH) - figures.keys() == {"decode_b8_1024_vs_ceiling"}
    assert figures["compiles_after_warmup"] == 0
    assert figures["rss_overhead_ratio"] == 1.5
    (child,) = children
    assert "tiny-llama" in " ".join(child)
    assert "--quick" in child


def test_a_full_benchmark_measures_the_second_start(fake_llm, children):
    plan = engine_bench.FULL
    engine_bench.run_child("m", plan)
    assert children[0][-2:] == ["--model", "m"]
    assert plan.decodes[0] == (1, 256)


def test_a_measured_process_reports_its_memory(command, fake_llm):
    status, out, _ = command(engine_bench, "--child", "start", "--model", "m", "--quick")
    assert status == 0
    figures = json.loads(out)
    assert figures["weights_and_pool_gib"] * 2**30 > FakeLLM.weights_bytes


def test_a_failed_process_ends_the_benchmark_with_its_log(monkeypatch):
    failed = SimpleNamespace(returncode=1, stderr="no model")
    monkeypatch.setattr(
        engine_bench, "subprocess", SimpleNamespace(run=lambda *_, **__: failed, PIPE=-1)
    )
    with pytest.raises(SystemExit, match="no model"):
        engine_bench.run_child("m", engine_bench.FULL)
