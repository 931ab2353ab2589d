"""Rendezvous of the processes that share a model, before any of them starts JAX.

JAX aborts a process that waits too long for another. Therefore processes first meet over their own
connections, and start JAX once all have joined. The connections are authenticated by the group's
secret. JAX's own coordinator, which is started then, cannot be: expose its port only on a private
network.
"""

from __future__ import annotations

import socket
import time

import jax

from kvflow_jax.distributed.authentication import (
    SECRET_VARIABLE,
    AuthenticationError,
    authenticate_leader,
)
from kvflow_jax.distributed.connection import Connection
from kvflow_jax.distributed.handshake import HELLO_TIMEOUT_S, Accepted, Handshakes, Settings
from kvflow_jax.distributed.messages import Failed, Hello, Refused, StartJax
from kvflow_jax.distributed.process_group import Follower, Leader
from kvflow_jax.distributed.process_info import ProcessInfo, is_loopback
from kvflow_jax.errors import ConfigError

_RETRY_S = 0.2  # between two attempts to connect to process 0
_SHUTDOWN_TIMEOUT_S = 10  # for processes to wait for each other when JAX shuts down


def start_leader(process_info: ProcessInfo, settings: Settings, timeout_s: float) -> Leader:
    """Wait for all followers, then start JAX with them.

    Args:
        settings: value by flag of what decides programs and sizes; equal on all processes.

    Raises:
        ConfigError: the port is in use, or a follower has not joined within ``timeout_s``.
    """
    leader = Leader(_accept_followers(process_info, settings, timeout_s))
    port = _find_free_port(process_info)
    leader.send(StartJax(port))
    _start_jax(process_info, port)
    return leader


def join_leader(process_info: ProcessInfo, settings: Settings, timeout_s: float) -> Follower:
    """Connect to process 0, wait until all processes have joined, then start JAX with them.

    Raises:
        ConfigError: process 0 cannot be reached within ``timeout_s``, or refuses this process.
    """
    deadline_s = time.monotonic() + timeout_s
    connection = Connection(_connect(process_info, deadline_s))
    hello = Hello(
        process_info.process_id, process_info.num_processes, socket.gethostname(), dict(settings)
    )
    left_s = max(deadline_s - time.monotonic(), 0.0)
    try:
        authenticate_leader(connection, process_info.secret, left_s + HELLO_TIMEOUT_S)
    except (OSError, EOFError, AuthenticationError) as error:
        connection.close()
        raise ConfigError(
            f"process 0 at {process_info.host}:{process_info.port} does not answer as one that "
            f"knows the secret of this process ({error}); give all processes the same "
            f"{SECRET_VARIABLE} or --coordinator-secret-file, and see its log"
        ) from None
    try:
        connection.send(hello)
        # When process 0 times out first, its answer says why.
        timeout_s = max(deadline_s - time.monotonic(), 0.0) + HELLO_TIMEOUT_S
        answer = connection.receive(timeout_s)
    except (OSError, EOFError, ValueError) as error:
        connection.close()
        raise ConfigError(
            f"process 0 at {process_info.host}:{process_info.port} does not answer ({error}); "
            "see its log"
        ) from None
    if not isinstance(answer, StartJax):
        connection.close()
        if isinstance(answer, Refused | Failed):
            raise ConfigError(answer.reason)
        raise ConfigError(f"process 0 sent an unexpected message: {answer}")
    follower = Follower(connection)
    _start_jax(process_info, answer.jax_port)
    return follower


def _start_jax(process_info: ProcessInfo, port: int) -> None:
    host = f"[{process_info.host}]" if ":" in process_info.host else process_info.host
    address = f"{host}:{port}"
    # JAX's preemption service would handle SIGTERM, with which this server drains.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        address,
        process_info.num_processes,
        process_info.process_id,
        local_device_ids=process_info.devices,
        cluster_detection_method="deactivate",
        coordinator_bind_address=address if is_loopback(process_info.host) else None,
        shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_S,
    )


def _listen(process_info: ProcessInfo, port: int) -> socket.socket:
    # With a loopback address all processes are on this machine: no other may connect.
    if is_loopback(process_info.host):
        addresses = socket.getaddrinfo(process_info.host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = addresses[0]
        return socket.create_server(address, family=family)
    # Followers may resolve this host to other addresses than it does itself: listen on all.
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _find_free_port(process_info: ProcessInfo) -> int:
    """Return a free port for JAX's own coordinator."""
    with _listen(process_info, 0) as listener:
        return int(listener.getsockname()[1])


def _accept_followers(process_info: ProcessInfo, settings: Settings, timeout_s: float) -> Accepted:
    try:
        listener = _listen(process_info, process_info.port)
    except OSError as error:
        raise ConfigError(
            f"process 0 cannot listen on {process_info.host}:{process_info.port} "
            f"({error.strerror}); choose another port for --coordinator"
        ) from None
    with listener:
        return Handshakes(process_info, settings).accept_all(listener, timeout_s)


def _connect(process_info: ProcessInfo, deadline_s: float) -> socket.socket:
    """Connect to process 0, which may start later than this process."""
    address = process_info.host, process_info.port
    while True:
        left_s = deadline_s - time.monotonic()
        try:
            return socket.create_connection(address, timeout=max(left_s, 0.1))
        except OSError as error:
            if left_s < _RETRY_S:
                raise ConfigError(
                    f"process 0 cannot be reached at {process_info.host}:{process_info.port} "
                    f"({error.strerror or error}): start it, or correct --coordinator"
                ) from None
        time.sleep(_RETRY_S)
