"""Several processes with one mesh: how they meet, and what they are told when one is lost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from kvflow_jax.errors import ConfigError, HostLostError

# JAX takes whole seconds that fit a C int, so no infinity; this is eleven days.
MAX_TIMEOUT_S = 10**6


def join(
    coordinator: str, num_processes: int, process_id: int, *, timeout_s: float = 60.0
) -> jax.sharding.Mesh:
    """Meet the other processes; return a mesh of one axis over the devices of all.

    Call it before any other use of JAX. On CPU the processes exchange messages by Gloo over TCP.
    If a process dies, runs of those that are connected with it raise ``HostLostError``. JAX ends
    all others with a fatal error of its own, ``timeout_s`` after the last sign of life at the
    latest; of a process that hangs, too.

    Args:
        coordinator: ``HOST:PORT`` at which process 0 listens.
        num_processes: number of processes.
        process_id: of this process, from 0; its nodes follow those of the process before it.
        timeout_s: how long to wait for the others to come, and for a sign of life; then JAX ends
            this process with a fatal error of its own.

    Raises:
        ConfigError: A number is out of range, or JAX has been used already.
    """
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"process_id must be from 0 to num_processes - 1; process_id = {process_id}, "
            f"num_processes = {num_processes}"
        )
    if not 1 <= timeout_s <= MAX_TIMEOUT_S:
        raise ConfigError(
            f"timeout_s must be at least 1 second and at most {MAX_TIMEOUT_S}, not {timeout_s}"
        )
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal() and 0 < int(port) < 2**16):
        raise ConfigError(f"the coordinator is HOST:PORT, not {coordinator!r}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method="deactivate",
            initialization_timeout=int(timeout_s),
            heartbeat_timeout_seconds=int(timeout_s),
        )
    except (RuntimeError, ValueError) as error:  # JaxRuntimeError is a RuntimeError
        raise ConfigError(
            f"process {process_id} of {num_processes} cannot join the others at {coordinator}: "
            f"{error}; start all within {timeout_s:g} s, and join before any other use of JAX"
        ) from error
    return jax.make_mesh((jax.device_count(),), ("nodes_of_all",))


def gather(array: jax.Array) -> np.ndarray:
    """Return an array [n, ...] of all processes to each of them."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


@contextlib.contextmanager
def peer_errors() -> Iterator[None]:
    """Raise ``HostLostError`` for the errors of a collective whose other side is gone."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        raise HostLostError(
            f"process {jax.process_index()} of {jax.process_count()} lost another one: start all "
            f"of them again, from the last checkpoint; {str(error).splitlines()[0]}"
        ) from error
