"""How processes that share a model find each other.

JAX ends a process that waits for another in vain. So they meet over connections of their own, and
start JAX when all are there.
"""

from __future__ import annotations

import socket
import time

import jax

from kvflow_jax.distributed.connection import Connection
from kvflow_jax.distributed.handshake import HELLO_S, Handshakes, Joined, Settings
from kvflow_jax.distributed.messages import Failed, StartJax, Hello, Refused
from kvflow_jax.distributed.process_group import Follower, Leader
from kvflow_jax.distributed.process_info import ProcessInfo, is_loopback
from kvflow_jax.errors import ConfigError

_RETRY_S = 0.2
_SHUTDOWN_S = 10  # for processes that end to wait for each other


def start_leader(process_info: ProcessInfo, settings: Settings, timeout_s: float) -> Leader:
    """Wait for all followers, then start JAX with them.

    Args:
        settings: what decides programs and sizes; all processes must have the same.

    Raises:
        ConfigError: the port is taken, or followers do not come within ``timeout_s``.
    """
    leader = Leader(_admit(process_info, settings, timeout_s))
    port = _free_port(process_info)
    leader.send(StartJax(port))
    _start_jax(process_info, port)
    return leader


def join_leader(process_info: ProcessInfo, settings: Settings, timeout_s: float) -> Follower:
    """Report to process 0, wait until all are there, then start JAX with them.

    Raises:
        ConfigError: process 0 cannot be reached within ``timeout_s``, or refuses this one.
    """
    deadline_s = time.monotonic() + timeout_s
    connection = Connection(_reach(process_info, deadline_s))
    hello = Hello(
        process_info.process_id, process_info.num_processes, socket.gethostname(), dict(settings)
    )
    try:
        connection.send(hello)
        # Process 0 gives up by itself, and says why.
        answer = connection.receive(max(deadline_s - time.monotonic(), 0.0) + HELLO_S)
    except (OSError, EOFError, ValueError) as error:
        connection.close()
        raise ConfigError(
            f"process 0 at {process_info.host}:{process_info.port} does not answer ({error}); see its log"
        ) from None
    if not isinstance(answer, StartJax):
        connection.close()
        raise ConfigError(answer.why if isinstance(answer, Refused | Failed) else f"got {answer}")
    follower = Follower(connection)
    _start_jax(process_info, answer.jax_port)
    return follower


def _start_jax(process_info: ProcessInfo, port: int) -> None:
    address = (
        f"[{process_info.host}]:{port}"
        if ":" in process_info.host
        else f"{process_info.host}:{port}"
    )
    # It would take SIGTERM for itself, by which we drain.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        address,
        process_info.num_processes,
        process_info.process_id,
        local_device_ids=process_info.devices,
        cluster_detection_method="deactivate",
        coordinator_bind_address=address if is_loopback(process_info.host) else None,
        shutdown_timeout_seconds=_SHUTDOWN_S,
    )


def _listen(process_info: ProcessInfo, port: int) -> socket.socket:
    if is_loopback(
        process_info.host
    ):  # the others are on this machine, too: nobody else need reach it
        found = socket.getaddrinfo(process_info.host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        return socket.create_server(address, family=family)
    # The others may know this host by other addresses than it does itself: by whichever they come.
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _free_port(process_info: ProcessInfo) -> int:
    """For JAX's own coordinator."""
    with _listen(process_info, 0) as listener:
        return int(listener.getsockname()[1])


def _admit(process_info: ProcessInfo, settings: Settings, timeout_s: float) -> Joined:
    """Wait for every follower, and check that it is one."""
    try:
        listener = _listen(process_info, process_info.port)
    except OSError as error:
        raise ConfigError(
            f"process 0 cannot listen on {process_info.host}:{process_info.port} ({error.strerror}); "
            "choose another port for --coordinator"
        ) from None
    with listener:
        return Handshakes(process_info, settings).run(listener, timeout_s)


def _reach(process_info: ProcessInfo, deadline_s: float) -> socket.socket:
    """A connection to process 0, which may start later than this one."""
    while True:
        left_s = deadline_s - time.monotonic()
        try:
            return socket.create_connection(
                (process_info.host, process_info.port), timeout=max(left_s, 0.1)
            )
        except OSError as error:
            if left_s < _RETRY_S:
                raise ConfigError(
                    f"process 0 cannot be reached at {process_info.host}:{process_info.port} "
                    f"({error.strerror or error}): start it, or correct --coordinator"
                ) from None
        time.sleep(_RETRY_S)
