"""Identity of a process in a group, and where the group's processes meet."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from kvflow_jax.errors import ConfigError

AUTO = "auto"


@dataclass(frozen=True)
class ProcessInfo:
    """One of several processes that share a model.

    Attributes:
        host, port: address of process 0, the coordinator, to which followers connect.
        num_processes: number of processes in the group.
        process_id: 0 for the leader, 1 to ``num_processes`` - 1 for followers.
        devices: local ids of the devices this process may use; None: all.
        secret: what the processes prove to each other; see ``authentication``.
    """

    host: str
    port: int
    num_processes: int
    process_id: int
    devices: Sequence[int] | None = None
    secret: bytes = field(default=b"", repr=False)

    @classmethod
    def find(
        cls,
        coordinator: str,
        num_processes: int | None = None,
        process_id: int | None = None,
        timeout_s: float = 300.0,
    ) -> ProcessInfo:
        """Return the process's identity from its flags.

        With ``auto`` as coordinator, values that the flags omit come from the cluster.

        Raises:
            ConfigError: names the flag that is missing or wrong.
        """
        address: str | None = None if coordinator == AUTO else coordinator
        devices: Sequence[int] | None = None
        if address is None:
            address, num_processes, process_id, devices = _detect_cluster(
                num_processes, process_id, timeout_s
            )
        if address is None or num_processes is None or process_id is None:
            raise ConfigError(
                "no cluster was detected: give --coordinator HOST:PORT, "
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
    """True if ``host`` is an address of this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_host(host: str) -> bool:
    """True if ``host`` can be looked up; for other names sockets raise UnicodeError."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:  # an empty label, or one longer than 63 characters
        return False


def _detect_cluster(
    num_processes: int | None, process_id: int | None, timeout_s: float
) -> tuple[str | None, int | None, int | None, Sequence[int] | None]:
    """Return what JAX detects on TPU pods and under SLURM, Open MPI and Kubernetes."""
    # jax.distributed.initialize makes the same call. It is made here because processes meet before
    # they start JAX, which aborts a process that waits too long.
    from jax._src.clusters import ClusterEnv

    return ClusterEnv.auto_detect_unset_distributed_params(
        None, num_processes, process_id, None, None, int(timeout_s)
    )
