from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import kvflow_jax.errors
from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.errors import ConfigError
from kvflow_jax.serve import __main__ as serve_main
from kvflow_jax.serve.__main__ import find_process_info, main, parse_config
from kvflow_jax.serve.config import ServerConfig


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVFLOW_CACHE_DIR", raising=False)
    config = parse_config([])
    assert (config.host, config.port) == ("127.0.0.1", 8000)
    assert config == ServerConfig(cache_dir=Path("~/.cache/kvflow-jax").expanduser())


def test_every_flag_sets_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFLOW_CACHE_DIR", "/elsewhere")
    flags = """--model m --served-model-name s --host ::1 --port 0 --api-key a --api-key b
        --max-model-len 4096 --max-num-seqs 8 --max-num-batched-tokens 256 --page-size 32
        --pool-gib 0.5 --dtype bfloat16 --attention blocks --tensor-parallel 2
        --coordinator tpu-0:8476 --num-processes 2 --process-id 1 --join-timeout-s 60
        --random-weights --seed 3 --deterministic --max-waiting 9
        --cache hicache --eviction kvflow --prefetch --host-cache-gib 2.5 --backup evict
        --link-ratio 0.5 --no-guard --admission --max-body-mib 1.5 --drain-timeout-s 0
        --log-level debug"""
    assert parse_config(flags.split()) == ServerConfig(
        model="m",
        served_model_name="s",
        host="::1",
        port=0,
        api_keys=("a", "b"),
        max_model_len=4096,
        max_num_seqs=8,
        max_num_batched_tokens=256,
        page_size=32,
        pool_gib=0.5,
        dtype="bfloat16",
        attention="blocks",
        tensor_parallel=2,
        coordinator="tpu-0:8476",
        num_processes=2,
        process_id=1,
        join_timeout_s=60.0,
        random_weights=True,
        seed=3,
        deterministic=True,
        cache=CacheConfig(
            "hicache",
            eviction="kvflow",
            prefetch=True,
            host_cache_gib=2.5,
            backup="evict",
            link_ratio=0.5,
            guard=False,
            admission=True,
        ),
        max_waiting=9,
        max_body_mib=1.5,
        drain_timeout_s=0.0,
        cache_dir=Path("/elsewhere"),
        log_level="debug",
    )
    assert parse_config(["--num-pages", "64", "--cache-dir", "/here"]).cache_dir == Path("/here")
    assert parse_config(["--trace", "trace.json"]).trace == Path("trace.json")
    assert parse_config(["--no-prefetch"]).cache == CacheConfig(prefetch=False)
    assert parse_config(["--guard"]).cache == CacheConfig(guard=True)
    assert parse_config(["--no-admission"]).cache == CacheConfig(admission=False)
    assert parse_config(["--host-cache-gib", "0"]).cache == CacheConfig(host_cache_gib=0)


@pytest.mark.parametrize(
    "flags",
    [
        ["--model", "m" * 5000],
        ["--model", "mo\ndel"],
        ["--model", ""],
        ["--served-model-name", "a\x00b"],
        ["--port", "70000"],
        ["--port", "http"],
        ["--api-key", ""],
        ["--max-num-seqs", "0"],
        ["--pool-gib", "nan"],
        ["--pool-gib", "1", "--num-pages", "2"],
        ["--drain-timeout-s", "-1"],
        ["--dtype", "int4"],
        ["--attention", "flash"],
        ["--num-processes", "0"],
        ["--process-id", "-1"],
        ["--cache", "vllm"],
        ["--eviction", "mru"],
        ["--backup", "never"],
        ["--host-cache-gib", "-1"],
        ["--link-ratio", "0"],
        ["--trace", ""],
        ["--trace", "/no/such/folder/trace.json"],
    ],
)
def test_an_invalid_flag_exits_with_code_2(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_config(flags)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert flags[-2] in message
    assert len(message.splitlines()[-1]) < 1000  # no message repeats 5000 characters


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--cache gpu-only --host-cache-gib 1", "gpu-only has no host tier"),
        ("--cache gpu-only --prefetch", "gpu-only has no host tier to prefetch from"),
        ("--prefetch --host-cache-gib 0", "prefetch needs a host tier"),
    ],
)
def test_cache_flags_that_contradict_each_other(
    flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_config(flags.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_packages_are_reported_with_the_install_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "fastapi" else found(name)
    )
    assert main([]) == 1
    message = capsys.readouterr().err
    assert "fastapi not installed" in message
    assert "pip install" in message
    assert "[serve]" in message


def test_without_a_checkout_the_packages_of_the_extra_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kvflow_jax.errors, "__file__", str(tmp_path / "kvflow_jax" / "errors.py"))
    command = serve_main._install_command()
    assert all(f"'{name}>=" in command for name in ("fastapi", "uvicorn", "prometheus-client"))
    assert "pytest" not in command
    assert "extra ==" not in command


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prot", "8000"], "unknown flag --prot; did you mean --port?"),
        (["--max-num-seq=4", "--no-guards"], "unknown flag --no-guards; did you mean --no-guard?"),
        (["--api-keys=secret"], "unknown flag --api-keys; did you mean --api-key?"),
        (["--quantize"], "unknown flag --quantize; see --help"),
        (["8000"], "unexpected argument '8000'; every setting is a flag, see --help"),
        (["--" + "x" * 5000], f"unknown flag --{'x' * 62}; see --help"),
    ],
)
def test_an_unknown_flag_suggests_the_nearest_one(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_config(flags)
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: {message}\n")


def test_a_process_is_single_without_a_coordinator() -> None:
    assert find_process_info(ServerConfig()) is None
    single = ServerConfig(coordinator="127.0.0.1:1", num_processes=1, process_id=0)
    assert find_process_info(single) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"process_id": 1}, "need --coordinator"),
        (
            {"coordinator": "127.0.0.1:1", "num_processes": 2, "process_id": 0},
            "--tensor-parallel 1 leaves processes without a device",
        ),
    ],
)
def test_a_group_that_cannot_work_is_rejected(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_process_info(ServerConfig(**settings))


@pytest.mark.parametrize(("process_id", "exit_code"), [(0, 10), (1, 11)])
def test_process_0_serves_and_every_other_process_is_a_worker(
    process_id: int, exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvflow_jax.serve.server.run", lambda config, build: 10)
    monkeypatch.setattr("kvflow_jax.serve.worker.run_worker", lambda config, process_info: 11)
    flags = "--coordinator 127.0.0.1:1 --num-processes 2 --tensor-parallel 2 --process-id"
    assert main([*flags.split(), str(process_id)]) == exit_code
