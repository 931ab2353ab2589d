"""Which of several processes this is, and where they meet."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from kvflow_jax.errors import ConfigError

AUTO = "auto"


@dataclass(frozen=True)
class ProcessInfo:
    """One of several processes.

    Attributes:
        host, port: of process 0, where the others report.
        devices: of this process's that it may use, by local number; None: all.
    """

    host: str
    port: int
    num_processes: int
    process_id: int
    devices: Sequence[int] | None = None

    @classmethod
    def find(
        cls,
        coordinator: str,
        num_processes: int | None = None,
        process_id: int | None = None,
        timeout_s: float = 300.0,
    ) -> ProcessInfo:
        """From flags; what they leave out, with ``auto`` as coordinator, from the cluster.

        Raises:
            ConfigError: naming the flag that is missing or wrong.
        """
        address: str | None = None if coordinator == AUTO else coordinator
        devices: Sequence[int] | None = None
        if address is None:
            address, num_processes, process_id, devices = _ask_cluster(
                num_processes, process_id, timeout_s
            )
        if address is None or num_processes is None or process_id is None:
            raise ConfigError(
                "no cluster says which process this is: give --coordinator HOST:PORT, "
                "--num-processes and --process-id"
                if coordinator == AUTO
                else "--coordinator HOST:PORT needs --num-processes and --process-id, too"
            )
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        if not _is_host(host) or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ConfigError(f"--coordinator must be HOST:PORT or auto, got {address!r}")
        if not 0 <= process_id < num_processes:
            raise ConfigError(
                f"--process-id must be 0 to {num_processes - 1} of --num-processes "
                f"{num_processes}, got {process_id}"
            )
        return cls(host, int(port), num_processes, process_id, devices)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_host(host: str) -> bool:
    """Whether it can be looked up: sockets raise a UnicodeError where it cannot."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:  # a label that is empty or longer than 63 characters
        return False


def _ask_cluster(
    num_processes: int | None, process_id: int | None, timeout_s: float
) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
    """What JAX finds out on TPU pods, under SLURM, Open MPI and Kubernetes."""
    # What jax.distributed.initialize asks, too; asked here, because processes meet before they
    # start JAX, which ends a process that waits in vain.
    from jax._src.clusters import ClusterEnv

    return ClusterEnv.auto_detect_unset_distributed_params(
        None, num_processes, process_id, None, None, int(timeout_s)
    )
