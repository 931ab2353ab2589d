from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvflow_jax.api.load_config import LoadConfig
from kvflow_jax.distributed.process_info import ProcessInfo
from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.engine.config import EngineConfig
from kvflow_jax.errors import ModelLoadError
from kvflow_jax.serve.command_line import parse_config
from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.launch import build_engine, shared_settings
from tests.serve.serve_fakes import FakeTokenizer


class FakeLeader:
    def __init__(self) -> None:
        self.failures: list[str] = []

    def fail(self, reason: str) -> None:
        self.failures.append(reason)

    def stalled_by(self) -> str:
        return "process 1"


@pytest.fixture
def leader(monkeypatch: pytest.MonkeyPatch) -> FakeLeader:
    """The group of the test, without any other process, and engines that are only described."""
    leader = FakeLeader()

    def build(loaded: Any, config: EngineConfig, **options: Any) -> tuple[Any, ...]:
        assert options["prepares_grammars"]
        return loaded.name, config.max_num_seqs, options["leader"]

    monkeypatch.setattr("kvflow_jax.distributed.rendezvous.start_leader", lambda *args: leader)
    monkeypatch.setattr("kvflow_jax.api.launch.use_compilation_cache", lambda folder: None)
    monkeypatch.setattr("kvflow_jax.api.launch.build_engine", build)
    monkeypatch.setattr("kvflow_jax.engine.engine_thread.EngineThread", lambda *args: args)
    return leader


def load_with(monkeypatch: pytest.MonkeyPatch, load: Any) -> None:
    monkeypatch.setattr("kvflow_jax.api.launch.load_model", load)


def test_a_single_process_builds_an_engine_without_a_group(
    leader: FakeLeader, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.5}')
    seen = {}
    loaded = SimpleNamespace(tokenizer=FakeTokenizer(), name="tiny")
    load_with(monkeypatch, lambda model, **options: seen.update(options, model=model) or loaded)
    config = ServerConfig(
        load=LoadConfig(
            "tiny-dir", dtype="float32", tensor_parallel=2, generation_config=str(tmp_path)
        ),
        engine=EngineConfig(max_num_seqs=3, page_size=8),
    )
    thread, tokenizer, name, defaults = build_engine(config)
    assert thread == (("tiny", 3, None),)
    assert (tokenizer, name) == (loaded.tokenizer, "tiny")
    assert (seen["model"], seen["dtype"], seen["tensor_parallel"]) == ("tiny-dir", "float32", 2)
    assert seen["page_size"] == 8
    assert defaults == {"temperature": 0.5}
    assert seen["seed"] == 0  # weights without --seed are the same in every process


def test_the_engine_of_a_group_reports_why_its_leader_is_stalled(
    leader: FakeLeader, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_with(monkeypatch, lambda *args, **options: SimpleNamespace(tokenizer=None, name="tiny"))
    process_info = ProcessInfo("127.0.0.1", 1, 2, 0)
    (engine, stalled_by), tokenizer, *_ = build_engine(ServerConfig(), process_info)
    assert engine[2] is leader
    assert stalled_by() == "process 1"
    assert tokenizer is None
    assert leader.failures == []


def test_a_failed_load_is_reported_to_the_group(
    leader: FakeLeader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise ModelLoadError("no such model")

    load_with(monkeypatch, fail)
    with pytest.raises(ModelLoadError):
        build_engine(ServerConfig(), ProcessInfo("127.0.0.1", 1, 2, 0))
    assert leader.failures == ["no such model"]


def test_shared_settings_are_named_by_flag_or_package(capsys: pytest.CaptureFixture[str]) -> None:
    settings = shared_settings(
        ServerConfig(
            load=LoadConfig(dtype="bfloat16"), engine=EngineConfig(cache=CacheConfig("hicache"))
        )
    )
    assert settings["--dtype"] == "bfloat16"
    assert settings["--cache"] == "hicache"
    assert settings["--seed"] == "None"
    own = {"--process-id", "--max-waiting", "--trace", "--cache-dir", "--host"}
    assert not own & settings.keys()
    with pytest.raises(SystemExit):
        parse_config(["--help"])
    text = capsys.readouterr().out
    flags = [name for name in settings if name.startswith("--")]
    assert [flag for flag in flags if f"  {flag}" not in text] == []
    assert set(settings) - set(flags) == {"kvflow-jax", "jax", "jaxlib", "flax"}
