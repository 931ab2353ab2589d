"""``python -m kvflow_jax.serve``: parse flags into a ServerConfig and start the process."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any, get_args

import kvflow_jax.errors
from kvflow_jax.cache.policy import POLICIES
from kvflow_jax.distributed.process_info import ProcessInfo
from kvflow_jax.engine.cache_config import BackupTime, CacheConfig, CacheMode
from kvflow_jax.runtime.gpu_memory import reserve_gpu_memory
from kvflow_jax.runtime.huge_pages import restart_with_huge_pages
from kvflow_jax.serve.argument_parser import ArgumentParser
from kvflow_jax.serve.config import ServerConfig

DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTIONS = ("auto", "reference", "blocks", "tpu-ragged", "gpu-mosaic", "gpu-paged")
LOG_LEVELS = ("debug", "info", "warning", "error")
MAX_NAME_CHARS = 4096  # PATH_MAX on Linux
WEB_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse flags, serve until stopped, return the exit code.

    Args:
        argv: the flags; None: ``sys.argv``, and the process may restart itself to get huge pages.
    """
    config = parse_config(argv)
    if argv is None:
        restart_with_huge_pages()
    missing = [name for name in WEB_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"kvflow-serve: {', '.join(missing)} not installed; run:\n  {_install_command()}",
            file=sys.stderr,
        )
        return 1
    reserve_gpu_memory()
    _set_up_logging(config.log_level)
    try:
        process_info = find_process_info(config)
    except kvflow_jax.errors.ConfigError as error:
        print(f"kvflow-serve: {error}", file=sys.stderr)
        return 2
    if process_info is not None and process_info.process_id:
        from kvflow_jax.serve.worker import run_worker

        return run_worker(config, process_info)

    from kvflow_jax.serve.launch import build_engine
    from kvflow_jax.serve.server import run

    return run(config, partial(build_engine, process_info=process_info))


def find_process_info(config: ServerConfig) -> ProcessInfo | None:
    """Return the identity of this process within its group, None for a single process.

    Raises:
        ConfigError: names the missing or wrong flag.
    """
    if config.coordinator is None:
        if config.num_processes is not None or config.process_id is not None:
            raise kvflow_jax.errors.ConfigError(
                "--num-processes and --process-id need --coordinator HOST:PORT, the address of "
                "process 0"
            )
        return None
    process_info = ProcessInfo.find(
        config.coordinator, config.num_processes, config.process_id, config.join_timeout_s
    )
    if config.tensor_parallel < process_info.num_processes:
        raise kvflow_jax.errors.ConfigError(
            f"--tensor-parallel {config.tensor_parallel} leaves processes without a device: set it "
            f"to at least --num-processes, {process_info.num_processes}"
        )
    return process_info if process_info.num_processes > 1 else None


def parse_config(argv: Sequence[str] | None = None) -> ServerConfig:
    """Return the flags as a config; print an error and exit with code 2 if a flag is invalid."""
    parser = make_parser()
    flags = vars(parser.parse_args(argv))
    flags["api_keys"] = tuple(flags.pop("api_key"))
    flags["cache_dir"] = Path(flags["cache_dir"]).expanduser()
    flags["cache"] = _cache_config(parser, flags)
    return ServerConfig(**flags)


def make_parser() -> ArgumentParser:
    """Return the parser of every flag; ``docs/flags.md`` is made from it."""
    default = ServerConfig()
    parser = ArgumentParser(
        prog="kvflow-serve",
        description="Serve an LLM to multi-agent workflows over OpenAI's API.",
    )
    add = parser.add_argument
    add(
        "--model",
        type=_name,
        default=default.model,
        help="smollm2-135m, a Hugging Face folder, a .gguf file or a Hub name; "
        "default: %(default)s",
    )
    add(
        "--served-model-name",
        type=_name,
        help="model name in requests and answers; default: the model's own name",
    )
    add("--host", default=default.host, help="address to listen on; default: %(default)s")
    add(
        "--port",
        type=_port,
        default=default.port,
        help="port to listen on, 0 for any free port; default: %(default)s",
    )
    add(
        "--api-key",
        action="append",
        type=_key,
        default=[],
        help="Bearer key that requests must send; repeat it for several tenants, which share no "
        "cache; default: no key required",
    )
    add(
        "--max-model-len",
        type=_count,
        help="maximum sequence length, prompt and output tokens together; default: the model's "
        "context",
    )
    add(
        "--max-num-seqs",
        type=_count,
        default=default.max_num_seqs,
        help="maximum number of requests in the running batch; default: %(default)s",
    )
    add(
        "--max-num-batched-tokens",
        type=_count,
        help="maximum prompt tokens per engine step; default: 256 on CPU, else 2048",
    )
    add(
        "--page-size",
        type=_count,
        default=default.page_size,
        help="tokens per KV block; default: %(default)s",
    )
    pool = parser.add_mutually_exclusive_group()
    pool.add_argument(
        "--pool-gib",
        type=_size,
        help="device memory for the KV pool, GiB; default: derived from free memory",
    )
    pool.add_argument(
        "--num-pages", type=_count, help="KV pool size in blocks, instead of --pool-gib"
    )
    add(
        "--dtype",
        choices=DTYPES,
        default=default.dtype,
        help="dtype of weights and KV cache; auto: float32 on CPU, bfloat16 on TPU, the "
        "checkpoint's dtype on GPU, or float16 on a GPU without bfloat16; default: %(default)s",
    )
    add(
        "--attention",
        choices=ATTENTIONS,
        default=default.attention,
        help="attention kernel; auto: the best one that supports the model on this device; "
        "default: %(default)s",
    )
    add(
        "--tensor-parallel",
        type=_count,
        default=default.tensor_parallel,
        help="number of devices, over all processes, that shard the model and the KV pool; "
        "default: %(default)s",
    )
    _add_process_flags(parser)
    add(
        "--random-weights",
        action="store_true",
        help="initialize weights at random from --seed; --model may then also be qwen3-0.6b, "
        "qwen3-30b-a3b, llama-3.2-1b or llama-3.1-8b",
    )
    add(
        "--seed",
        type=int,
        help="seed of random weights and of requests without a seed; default: 0 for weights, "
        "from the system for requests",
    )
    add(
        "--deterministic",
        action="store_true",
        help="make tokens independent of the batch and of the cache state; slower",
    )
    _add_cache_flags(parser)
    add(
        "--max-waiting",
        type=_count,
        default=default.max_waiting,
        help="maximum number of queued requests; further requests get HTTP 429 (backpressure); "
        "default: %(default)s",
    )
    add(
        "--max-body-mib",
        type=_size,
        default=default.max_body_mib,
        help="maximum size of a request body, MiB; larger bodies get HTTP 413; "
        "default: %(default)s",
    )
    add(
        "--drain-timeout-s",
        type=_duration,
        default=default.drain_timeout_s,
        help="seconds that running requests have to finish after Ctrl-C or SIGTERM; "
        "default: %(default)s",
    )
    add(
        "--cache-dir",
        type=Path,
        default=os.environ.get("KVFLOW_CACHE_DIR") or default.cache_dir,
        help="folder of models and compiled programs; default: KVFLOW_CACHE_DIR, or "
        f"{default.cache_dir}",
    )
    add(
        "--trace",
        type=_new_file,
        metavar="FILE",
        help="write a trace of the engine to FILE, readable by ui.perfetto.dev",
    )
    add(
        "--log-level",
        choices=LOG_LEVELS,
        default=default.log_level,
        help="debug logs one line per request; default: %(default)s",
    )
    return parser


def _add_process_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several hosts",
        "start one process on each host, with the same flags except for --process-id",
    )
    default, add = ServerConfig(), group.add_argument
    add(
        "--coordinator",
        metavar="HOST:PORT",
        help="address where process 0, which serves HTTP, waits for the other processes "
        "(rendezvous). auto: ask the cluster (TPU pod, SLURM, Open MPI, Kubernetes). The "
        "coordinator ports are unauthenticated; expose them only on a private network",
    )
    add("--num-processes", type=_count, help="number of processes; default: ask the cluster")
    add(
        "--process-id",
        type=_index,
        help="index of this process, from 0; default: ask the cluster",
    )
    add(
        "--join-timeout-s",
        type=_duration,
        default=default.join_timeout_s,
        help="seconds that processes wait for each other at startup; default: %(default)s",
    )


def _add_cache_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "cache",
        "policy of the KV cache; --cache selects it, the other flags change one part of it, "
        "for experiments",
    )
    default, add = CacheConfig(), group.add_argument
    add(
        "--cache",
        choices=get_args(CacheMode),
        default=default.mode,
        help="gpu-only: evict the least recently used (LRU) blocks and recompute them. hicache: "
        "LRU on device and host; evicted blocks stay in host memory and are loaded when a request "
        "needs them. kvflow: workflows decide the order of eviction, and blocks are loaded before "
        "a request needs them; default: %(default)s",
    )
    add(
        "--eviction",
        choices=tuple(POLICIES),
        help="eviction policy; default: kvflow with --cache kvflow, else lru",
    )
    add(
        "--prefetch",
        action=argparse.BooleanOptionalAction,
        help="load the blocks of the agents that run next before a request needs them; default: "
        "on with --cache kvflow",
    )
    add(
        "--host-cache-gib",
        type=_budget,
        help="host memory for offloaded KV blocks, GiB, 0 for none; default: the size of the "
        "pool, or what is free if that is less",
    )
    add(
        "--backup",
        choices=get_args(BackupTime),
        default=default.backup,
        help="when to offload blocks to the host: early, while the link is idle, or on evict; "
        "default: %(default)s",
    )
    add(
        "--link-ratio",
        type=_size,
        help="emulate a host link over which loading a block takes this many times as long as "
        "computing it; default: the real link",
    )
    add(
        "--guard",
        action=argparse.BooleanOptionalAction,
        help="three safeguards: recompute blocks that take longer to load (cost model), fall back "
        "to LRU where step graphs lower the hit rate below that of a shadow LRU cache, and treat "
        "idle runs as distant; default: on with --cache kvflow",
    )
    add(
        "--admission",
        action=argparse.BooleanOptionalAction,
        help="admission control: time-slice workflow runs while the cache thrashes; default: on "
        "with --eviction kvflow-cost",
    )


def _cache_config(parser: argparse.ArgumentParser, flags: dict[str, Any]) -> CacheConfig:
    """Move the cache flags out of ``flags``; exit with code 2 if they contradict each other."""
    names = ("eviction", "prefetch", "host_cache_gib", "backup", "link_ratio", "guard", "admission")
    settings = {name: flags.pop(name) for name in names}
    try:
        return CacheConfig(flags.pop("cache"), **settings)
    except kvflow_jax.errors.ConfigError as error:
        parser.error(str(error))


def _set_up_logging(level: str) -> None:
    """Log this package at ``level`` and other libraries at warning; at debug, also each request."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kvflow_jax").setLevel(level.upper())
    # Orbax logs its internal steps below this level.
    logging.getLogger("absl").setLevel(logging.ERROR)
    if level == "debug":
        logging.getLogger("uvicorn").setLevel(logging.INFO)


def _install_command() -> str:
    """Return a command that installs what the server needs besides the core."""
    checkout = Path(kvflow_jax.errors.__file__).parents[1]
    pip = f"{sys.executable} -m pip install"
    if (checkout / "pyproject.toml").exists():
        return f"{pip} -e '{checkout}[serve]'"
    # Of a wheel it is not known where it came from: install the packages of its extra.
    try:
        requirements = requires("kvflow-jax") or ()
    except PackageNotFoundError:  # a copy of the sources
        requirements = [f"{name.replace('_', '-')}; extra == 'serve'" for name in WEB_PACKAGES]
    packages = [
        requirement.partition(";")[0].strip()
        for requirement in requirements
        if re.search(r"extra == .serve.", requirement)
    ]
    return f"{pip} {' '.join(shlex.quote(package) for package in packages)}"


def _number_type(
    parse: Callable[[str], float], is_valid: Callable[[float], bool], expected: str
) -> Callable[[str], float]:
    """Return an argparse ``type`` for numbers that satisfy ``is_valid``."""

    def convert(text: str) -> float:
        try:
            value = parse(text)
        except ValueError:
            value = float("nan")
        # Every comparison with NaN is False, so a NaN is never valid.
        if not is_valid(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {expected}")
        return value

    return convert


_count = _number_type(int, lambda value: value >= 1, "an integer of at least 1")
_index = _number_type(int, lambda value: value >= 0, "an integer of at least 0")
_port = _number_type(int, lambda value: 0 <= value <= 65535, "a port between 0 and 65535")
_size = _number_type(float, lambda value: 0 < value < float("inf"), "a number above 0")
_budget = _number_type(float, lambda value: 0 <= value < float("inf"), "a number of at least 0")
_duration = _number_type(float, lambda value: 0 <= value < float("inf"), "a number of seconds")


def _new_file(text: str) -> Path:
    path = Path(text)
    if not text or os.path.isdir(path) or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write a file at {text!r}")
    return path


def _name(text: str) -> str:
    if not text or len(text) > MAX_NAME_CHARS or any(ord(char) < ord(" ") for char in text):
        raise argparse.ArgumentTypeError(
            f"a name must have 1 to {MAX_NAME_CHARS} characters and no line breaks"
        )
    return text


def _key(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("an API key must not be empty")
    return text.strip()


if __name__ == "__main__":
    sys.exit(main())
