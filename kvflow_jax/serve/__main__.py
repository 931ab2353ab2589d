"""``python -m kvflow_jax.serve``: parse flags into a ServerConfig and start the process."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import TYPE_CHECKING

import kvflow_jax.errors
from kvflow_jax.errors import ConfigError

if TYPE_CHECKING:
    from kvflow_jax.distributed.process_info import ProcessInfo
    from kvflow_jax.serve.config import ServerConfig

CORE_PACKAGES = ("numpy", "jax", "flax", "orbax", "transformers", "safetensors", "jinja2")
WEB_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse flags, serve until stopped, return the exit code.

    Args:
        argv: the flags; None: ``sys.argv``, and the process may restart itself to get huge pages.
    """
    packages = CORE_PACKAGES + WEB_PACKAGES
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"kvflow-serve: {', '.join(missing)} not installed for {sys.executable}; run make "
            f"serve, which has an environment of its own, or: {_install_command()}",
            file=sys.stderr,
        )
        return 1
    # The flags need numpy, which a Python outside of the environment may lack.
    from kvflow_jax.runtime.gpu_memory import reserve_gpu_memory
    from kvflow_jax.runtime.huge_pages import restart_with_huge_pages
    from kvflow_jax.serve.command_line import parse_config

    config = parse_config(argv)
    if argv is None:
        restart_with_huge_pages()
    reserve_gpu_memory()
    _set_up_logging(config.log_level)
    try:
        process_info = find_process_info(config)
    except ConfigError as error:
        print(f"kvflow-serve: {error}", file=sys.stderr)
        return 2
    if process_info is not None and process_info.process_id:
        from kvflow_jax.serve.worker import run_worker

        return run_worker(config, process_info)

    from kvflow_jax.runtime.garbage import freeze_heap
    from kvflow_jax.serve.launch import build_engine
    from kvflow_jax.serve.protocols import BuiltEngine
    from kvflow_jax.serve.server import run

    def build(config: ServerConfig) -> BuiltEngine:
        built = build_engine(config, process_info)
        freeze_heap()
        return built

    return run(config, build)


def find_process_info(config: ServerConfig) -> ProcessInfo | None:
    """Return the identity of this process within its group, None for a single process.

    Raises:
        ConfigError: names the missing or wrong flag.
    """
    from kvflow_jax.distributed.authentication import SECRET_VARIABLE, read_secret
    from kvflow_jax.distributed.process_info import ProcessInfo, is_loopback

    processes, tensor_parallel = config.processes, config.load.tensor_parallel
    if processes.coordinator is None:
        if processes.num_processes is not None or processes.process_id is not None:
            raise ConfigError(
                "--num-processes and --process-id need --coordinator HOST:PORT, the address of "
                "process 0"
            )
        return None
    process_info = ProcessInfo.find(
        processes.coordinator,
        processes.num_processes,
        processes.process_id,
        processes.join_timeout_s,
    )
    if tensor_parallel < process_info.num_processes:
        raise ConfigError(
            f"--tensor-parallel {tensor_parallel} leaves processes without a device: set it to at "
            f"least --num-processes, {process_info.num_processes}"
        )
    if process_info.num_processes == 1:
        return None
    secret = read_secret(processes.coordinator_secret_file, os.environ)
    if not secret and not is_loopback(process_info.host):
        raise ConfigError(
            f"the coordinator {process_info.host} can be reached from other machines, so the "
            f"processes need a secret: set {SECRET_VARIABLE} or --coordinator-secret-file on each"
        )
    return replace(process_info, secret=secret)


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


if __name__ == "__main__":
    sys.exit(main())
