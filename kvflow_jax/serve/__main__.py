"""``python -m kvflow_jax.serve``: flags to a ServerConfig, nothing else."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import kvflow_jax.errors
from kvflow_jax.cache.policy import POLICIES
from kvflow_jax.distributed.process_info import ProcessInfo
from kvflow_jax.engine.cache_config import BackupTime, CacheConfig, CacheMode
from kvflow_jax.runtime.gpu_memory import reserve_gpu_memory
from kvflow_jax.runtime.huge_pages import restart_with_huge_pages
from kvflow_jax.serve.config import ServerConfig

DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTIONS = ("auto", "reference", "blocks", "tpu-ragged", "gpu-mosaic", "gpu-paged")
LOG_LEVELS = ("debug", "info", "warning", "error")
MAX_NAME_CHARS = 4096  # of a path, on Linux
WEB_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse flags, serve until stopped, return the exit code.

    Args:
        argv: the flags; None: those of the process, which this call may begin anew.
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
        from kvflow_jax.serve.worker import follow

        return follow(config, process_info)

    from kvflow_jax.serve.launch import build_engine
    from kvflow_jax.serve.server import run

    return run(config, partial(build_engine, process_info=process_info))


def find_process_info(config: ServerConfig) -> ProcessInfo | None:
    """Which of several processes this is; None where it is alone.

    Raises:
        ConfigError: naming the flag that is missing or wrong.
    """
    if config.coordinator is None:
        if config.num_processes is not None or config.process_id is not None:
            raise kvflow_jax.errors.ConfigError(
                "--num-processes and --process-id need --coordinator HOST:PORT, of process 0"
            )
        return None
    process_info = ProcessInfo.find(
        config.coordinator, config.num_processes, config.process_id, config.join_timeout_s
    )
    if config.tensor_parallel < process_info.num_processes:
        raise kvflow_jax.errors.ConfigError(
            f"--tensor-parallel {config.tensor_parallel} leaves processes without a device: give "
            f"at least --num-processes, {process_info.num_processes}"
        )
    return process_info if process_info.num_processes > 1 else None


def parse_config(argv: Sequence[str] | None = None) -> ServerConfig:
    """The flags as a config; exits with 2 and a usage line where they make no sense."""
    default = ServerConfig()
    parser = argparse.ArgumentParser(
        prog="kvflow-serve",
        description="Serve an LLM to multi-agent workflows over OpenAI's API.",
    )
    add = parser.add_argument
    add(
        "--model",
        type=_name,
        default=default.model,
        help="smollm2-135m, Hugging Face folder, .gguf file or Hub name; default: %(default)s",
    )
    add("--served-model-name", type=_name, help="name that clients use; default: the model's own")
    add("--host", default=default.host, help="default: %(default)s")
    add("--port", type=_port, default=default.port, help="default: %(default)s")
    add(
        "--api-key",
        action="append",
        type=_key,
        default=[],
        help="Bearer key to ask for; may repeat, then keys share no cache",
    )
    add("--max-model-len", type=_count, help="prompt and answer together; default: the model's")
    add(
        "--max-num-seqs",
        type=_count,
        default=default.max_num_seqs,
        help="requests that run at once; default: %(default)s",
    )
    add(
        "--max-num-batched-tokens",
        type=_count,
        help="prompt tokens of one engine step; default: 256 on CPU, else 2048",
    )
    add(
        "--page-size",
        type=_count,
        default=default.page_size,
        help="tokens per block; default: %(default)s",
    )
    pool = parser.add_mutually_exclusive_group()
    pool.add_argument(
        "--pool-gib",
        type=_size,
        help="device memory for the KV pool, GiB; default: from what is free",
    )
    pool.add_argument(
        "--num-pages", type=_count, help="size of the KV pool in blocks, instead of --pool-gib"
    )
    add(
        "--dtype",
        choices=DTYPES,
        default=default.dtype,
        help="of weights and KV; auto: float32 on CPU, bfloat16 on TPU, on GPU that of the "
        "checkpoint, and float16 where a GPU has no bfloat16; default: %(default)s",
    )
    add(
        "--attention",
        choices=ATTENTIONS,
        default=default.attention,
        help="kernel that computes it; auto: the best that serves the model on this device; "
        "default: %(default)s",
    )
    add(
        "--tensor-parallel",
        type=_count,
        default=default.tensor_parallel,
        help="devices that share model and KV pool, of all processes; default: %(default)s",
    )
    _add_process_flags(parser)
    add(
        "--random-weights",
        action="store_true",
        help="make the weights up from --seed; --model may then also be qwen3-0.6b, "
        "qwen3-30b-a3b, llama-3.2-1b or llama-3.1-8b",
    )
    add(
        "--seed",
        type=int,
        help="of random weights, and of requests without one; default: from the system",
    )
    add(
        "--deterministic",
        action="store_true",
        help="the same tokens whatever runs beside a request or is cached; slower",
    )
    _add_cache_flags(parser)
    add(
        "--max-waiting",
        type=_count,
        default=default.max_waiting,
        help="queue bound, then 429; default: %(default)s",
    )
    add(
        "--max-body-mib",
        type=_size,
        default=default.max_body_mib,
        help="then 413; default: %(default)s",
    )
    add(
        "--drain-timeout-s",
        type=_duration,
        default=default.drain_timeout_s,
        help="how long running requests get after Ctrl-C or SIGTERM; default: %(default)s",
    )
    add(
        "--cache-dir",
        type=Path,
        default=os.environ.get("KVFLOW_CACHE_DIR") or default.cache_dir,
        help="models and compiled programs; default: %(default)s, or KVFLOW_CACHE_DIR",
    )
    add(
        "--trace",
        type=_new_file,
        metavar="FILE",
        help="write what the engine does and when, for ui.perfetto.dev",
    )
    add(
        "--log-level",
        choices=LOG_LEVELS,
        default=default.log_level,
        help="debug: a line per request; default: %(default)s",
    )

    flags = vars(parser.parse_args(argv))
    flags["api_keys"] = tuple(flags.pop("api_key"))
    flags["cache_dir"] = Path(flags["cache_dir"]).expanduser()
    flags["cache"] = _cache_config(parser, flags)
    return ServerConfig(**flags)


def _add_process_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "several hosts", "start one process on each, all with the same flags but --process-id"
    )
    default, add = ServerConfig(), group.add_argument
    add(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0, which serves HTTP, waits for the others. "
        "auto: ask the cluster (TPU pod, SLURM, Open MPI, Kubernetes). Use it in a private "
        "network: whoever reaches the ports is believed",
    )
    add("--num-processes", type=_count, help="how many there are; default: ask the cluster")
    add("--process-id", type=_index, help="which this is, from 0; default: ask the cluster")
    add(
        "--join-timeout-s",
        type=_duration,
        default=default.join_timeout_s,
        help="how long they wait for each other at the start; default: %(default)s",
    )


def _add_cache_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "cache", "what is kept where; all but --cache are for measuring one thing at a time"
    )
    default, add = CacheConfig(), group.add_argument
    add(
        "--cache",
        choices=get_args(CacheMode),
        default=default.mode,
        help="gpu-only: what was used longest ago goes, and is computed again. hicache: it goes to "
        "host memory, and is loaded when a request asks. kvflow: workflows say what goes and what "
        "is brought back before it is asked for; default: %(default)s",
    )
    add("--eviction", choices=tuple(POLICIES), help="what goes first; default: by --cache")
    add(
        "--prefetch",
        action=argparse.BooleanOptionalAction,
        help="bring back what agents read next; default: by --cache",
    )
    add(
        "--host-cache-gib",
        type=_budget,
        help="host memory for KV, GiB, 0 for none; default: as large as the pool, if there is room",
    )
    add(
        "--backup",
        choices=get_args(BackupTime),
        default=default.backup,
        help="copy blocks to the host while the link is idle, or when they are evicted; "
        "default: %(default)s",
    )
    add(
        "--link-ratio",
        type=_size,
        help="emulate a link over which loading a block takes this many times as long as computing "
        "it; default: the link there is",
    )
    add(
        "--guard",
        action=argparse.BooleanOptionalAction,
        help="compute again what would take longer to load; default: by --cache",
    )
    add(
        "--admission",
        action=argparse.BooleanOptionalAction,
        help="while the cache thrashes, let runs of workflows take turns; default: by --eviction",
    )


def _cache_config(parser: argparse.ArgumentParser, flags: dict[str, Any]) -> CacheConfig:
    """Takes its flags out of ``flags``; exits with 2 where they contradict each other."""
    names = ("eviction", "prefetch", "host_cache_gib", "backup", "link_ratio", "guard", "admission")
    switches = {name: flags.pop(name) for name in names}
    try:
        return CacheConfig(flags.pop("cache"), **switches)
    except kvflow_jax.errors.ConfigError as error:
        parser.error(str(error))


def _set_up_logging(level: str) -> None:
    """Ours at ``level``, one line a request at debug; of other libraries warnings only."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kvflow_jax").setLevel(level.upper())
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax thinks aloud
    if level == "debug":
        logging.getLogger("uvicorn").setLevel(logging.INFO)


def _install_command() -> str:
    package = Path(kvflow_jax.errors.__file__).parent
    checkout = package.parent
    if (checkout / "pyproject.toml").exists():
        return f"{sys.executable} -m pip install -e '{checkout}[serve]'"
    return f"{sys.executable} -m pip install 'kvflow-jax[serve]'"


def _number(
    parse: Callable[[str], float], fits: Callable[[float], bool], want: str
) -> Callable[[str], float]:
    def convert(text: str) -> float:
        try:
            value = parse(text)
        except ValueError:
            value = float("nan")
        if not fits(value):  # a NaN never fits
            raise argparse.ArgumentTypeError(f"{text!r} is not {want}")
        return value

    return convert


_count = _number(int, lambda value: value >= 1, "a whole number of at least 1")
_index = _number(int, lambda value: value >= 0, "a whole number of at least 0")
_port = _number(int, lambda value: 0 <= value <= 65535, "a port between 0 and 65535")
_size = _number(float, lambda value: 0 < value < float("inf"), "a number above 0")
_budget = _number(float, lambda value: 0 <= value < float("inf"), "a number of at least 0")
_duration = _number(float, lambda value: 0 <= value < float("inf"), "a number of seconds")


def _new_file(text: str) -> Path:
    path = Path(text)
    if not text or os.path.isdir(path) or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"no file can be written at {text!r}")
    return path


def _name(text: str) -> str:
    if not text or len(text) > MAX_NAME_CHARS or any(ord(char) < ord(" ") for char in text):
        raise argparse.ArgumentTypeError(
            f"a name has 1 to {MAX_NAME_CHARS} characters and no line breaks"
        )
    return text


def _key(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty key would let everybody in")
    return text.strip()


if __name__ == "__main__":
    sys.exit(main())
