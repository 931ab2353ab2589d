"""The flags of the server, from text to a configuration, and their one definition."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest

from docs.generate import HERE
from kvflow_jax.api.load_config import LoadConfig
from kvflow_jax.config.flag import flag, with_values
from kvflow_jax.config.values import COUNT
from kvflow_jax.distributed.process_config import ProcessConfig
from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.engine.config import EngineConfig
from kvflow_jax.errors import ConfigError
from kvflow_jax.serve.argument_parser import ArgumentParser
from kvflow_jax.serve.command_line import make_parser, parse_config
from kvflow_jax.serve.config import ServerConfig

# Fields without a flag: each is a config whose fields have flags.
HELD = {"load", "engine", "cache", "processes"}


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVFLOW_CACHE_DIR", raising=False)
    config = parse_config([])
    assert (config.host, config.port) == ("127.0.0.1", 8000)
    assert config == ServerConfig()
    assert config.load.cache_dir is None
    home = parse_config(["--cache-dir", "~/models"]).load.cache_dir
    assert home == Path("~/models").expanduser()


def test_every_flag_sets_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVFLOW_CACHE_DIR", "/elsewhere")
    flags = """--model m --served-model-name s t --served-model-name u
        --host ::1 --port 0 --api-key a --api-key b
        --api-key-file keys.toml --admin-api-key c --open-metrics
        --allowed-origins https://a.example http://b.example:3000
        --allowed-methods ["GET","POST"] --allowed-headers X-One --allow-credentials
        --allowed-hosts a.example b.example --forwarded-allow-ips 10.0.0.0/8 ::1
        --max-connections 99 --client-timeout-s 2.5
        --max-model-len 4096 --max-num-seqs 8 --max-num-batched-tokens 256 --page-size 32
        --pool-gib 0.5 --dtype bfloat16 --attention blocks --tensor-parallel 2
        --generation-config kvflow --cache-dir-gib 7.5
        --coordinator tpu-0:8476 --num-processes 2 --process-id 1 --join-timeout-s 60
        --random-weights --seed 3 --deterministic --max-waiting 9
        --cache hicache --eviction kvflow --prefetch --host-cache-gib 2.5 --backup evict
        --link-ratio 0.5 --no-guard --admission --max-body-mib 1.5 --drain-timeout-s 0
        --log-level debug"""
    assert parse_config(flags.split()) == ServerConfig(
        served_model_names=("s", "t", "u"),
        allowed_origins=("https://a.example", "http://b.example:3000"),
        allowed_methods=("GET", "POST"),
        allowed_headers=("X-One",),
        allow_credentials=True,
        allowed_hosts=("a.example", "b.example"),
        forwarded_allow_ips=("10.0.0.0/8", "::1"),
        max_connections=99,
        client_timeout_s=2.5,
        host="::1",
        port=0,
        api_keys=("a", "b"),
        api_key_file=Path("keys.toml"),
        admin_api_keys=("c",),
        open_metrics=True,
        max_body_mib=1.5,
        drain_timeout_s=0.0,
        log_level="debug",
        load=LoadConfig(
            model="m",
            dtype="bfloat16",
            attention="blocks",
            tensor_parallel=2,
            generation_config="kvflow",
            random_weights=True,
            cache_dir=Path("/elsewhere"),
            cache_dir_gib=7.5,
        ),
        engine=EngineConfig(
            max_model_len=4096,
            max_num_seqs=8,
            max_num_batched_tokens=256,
            page_size=32,
            pool_gib=0.5,
            max_waiting=9,
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
        ),
        processes=ProcessConfig(
            coordinator="tpu-0:8476", num_processes=2, process_id=1, join_timeout_s=60.0
        ),
    )
    assert parse_config(["--num-pages", "64", "--cache-dir", "/here"]).load.cache_dir == Path(
        "/here"
    )
    assert parse_config(["--trace", "trace.json"]).engine.trace == Path("trace.json")
    assert parse_config(["--no-prefetch"]).engine.cache == CacheConfig(prefetch=False)
    addresses = parse_config(["--forwarded-allow-ips", "10.0.0.0/8,::1"]).forwarded_allow_ips
    assert addresses == ("10.0.0.0/8", "::1")
    assert parse_config(["--guard"]).engine.cache == CacheConfig(guard=True)
    assert parse_config(["--no-admission"]).engine.cache == CacheConfig(admission=False)
    assert parse_config(["--host-cache-gib", "0"]).engine.cache == CacheConfig(host_cache_gib=0)


@pytest.mark.parametrize(
    "flags",
    [
        ["--model", "m" * 5000],
        ["--model", "mo\ndel"],
        ["--model", ""],
        ["--served-model-name", "a\x00b"],
        ["--allowed-origins", "app.example.com"],
        ["--allowed-origins", "https://app.example.com/"],
        ["--allowed-origins", '["*", 1]'],
        ["--allowed-origins", "["],
        ["--allowed-headers", "X One"],
        ["--allowed-hosts", "http://a.example"],
        ["--allowed-hosts", "a.example:8000"],
        ["--forwarded-allow-ips", "proxy.example"],
        ["--forwarded-allow-ips", "10.0.0.1/8"],
        ["--max-connections", "0"],
        ["--client-timeout-s", "0"],
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
        ["--eviction", "json:nothing"],
        ["--seed", "-1"],
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
    assert flags[-2].lstrip("-").replace("-", "_") in message.splitlines()[-1].replace("-", "_")
    assert len(message.splitlines()[-1]) < 1000  # no message repeats 5000 characters


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--cache gpu-only --host-cache-gib 1", "gpu-only has no host tier"),
        ("--cache gpu-only --prefetch", "gpu-only has no host tier to prefetch from"),
        ("--prefetch --host-cache-gib 0", "prefetch needs a host tier"),
        ("--num-pages 1 --pool-gib 1", "set num_pages or pool_gib, not both"),
    ],
)
def test_flags_that_contradict_each_other(
    flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_config(flags.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prot", "8000"], "unknown flag --prot; did you mean --port?"),
        (["--max-num-seq=4", "--no-guards"], "unknown flag --no-guards; did you mean --no-guard?"),
        (["--api-keys=secret"], "unknown flag --api-keys; did you mean --api-key?"),
        (["--frobnicate"], "unknown flag --frobnicate; see --help"),
        (
            ["8000"],
            "unexpected argument '8000'; every setting is a flag, the model --model: see --help",
        ),
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


def test_an_api_key_is_never_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--api-key", "secret", "--api-key", " "])
    assert "argument --api-key: must be text that is not empty\n" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="api_key must be") as caught:
        ServerConfig(api_keys=("secret", ""))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value", "complaint"),
    [
        ("--max-num-seqs 0", {"max_num_seqs": 0}, "must be an integer of at least 1; got "),
        ("--pool-gib nan", {"pool_gib": float("nan")}, "must be a number above 0; got "),
        ("--port 70000", {"port": 70000}, "must be a port from 0 to 65535; got "),
        ("--dtype int4", {"dtype": "int4"}, "must be one of auto, float32, bfloat16, float16; got"),
        ("--eviction mru", {"eviction": "mru"}, "must be one of lru, kvflow, kvflow-cost, or "),
    ],
)
def test_a_flag_and_a_field_have_the_same_error(
    text: str, value: dict[str, object], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    option, _ = text.split()
    with pytest.raises(SystemExit):
        parse_config(text.split())
    assert f"argument {option}: {complaint}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=f"{next(iter(value))} {complaint}"):
        with_values(ServerConfig(), value)


def test_every_field_has_a_flag_or_is_a_config_whose_fields_have_one() -> None:
    names: list[str] = []
    for config in ServerConfig().configs():
        with_flag = {setting.field for setting in config.settings()}
        assert {field.name for field in fields(config)} - with_flag <= HELD
        names += with_flag
    assert len(names) == len(set(names))  # ``with_values`` finds a field by its name


def test_the_page_of_flags_is_what_help_prints() -> None:
    page = (HERE / "flags.md").read_text()
    help_text = " ".join(make_parser().format_help().split())
    for config in ServerConfig().configs():
        assert f"## {config.title.capitalize()}" in page
        for setting in config.settings():
            assert setting.option in help_text
            assert setting.help in help_text.replace("- ", "-")
            row = next(line for line in page.splitlines() if f"`{setting.option}`" in line)
            assert setting.help in row


def test_a_new_field_needs_nothing_but_its_definition(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Extended(EngineConfig):
        max_beams: int = flag(4, "maximum number of beams", COUNT, unit="BEAMS")

    parser = ArgumentParser(prog="extended")
    parser.add_config(Extended())
    config = with_values(Extended(), vars(parser.parse_args(["--max-beams", "7"])))
    assert config == replace(Extended(), max_beams=7)
    help_text = parser.format_help()
    assert "--max-beams BEAMS" in help_text
    assert "maximum number of beams; default: 4" in help_text
    with pytest.raises(ConfigError, match="max_beams must be an integer of at least 1; got 0"):
        Extended(max_beams=0)
    with pytest.raises(SystemExit):
        parser.parse_args(["--max-beasm", "7"])
    assert "did you mean --max-beams?" in capsys.readouterr().err
