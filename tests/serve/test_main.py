from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.serve.__main__ import main, parse_config
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
        --random-weights --seed 3 --max-waiting 9
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
    assert len(message.splitlines()[-1]) < 1000  # none repeats 5000 characters


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
