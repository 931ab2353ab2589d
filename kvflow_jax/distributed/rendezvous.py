"""How processes that share a model find each other.

JAX ends a process that waits for another in vain. So they meet over connections of their own, and
start JAX when all are there.
"""

from __future__ import annotations

import socket
import time

import jax

from kvflow_jax.distributed.connection import Connection
from kvflow_jax.distributed.handshake import HELLO_S, Admission, Joined, Settings
from kvflow_jax.distributed.messages import Failed, Go, Hello, Refused
from kvflow_jax.distributed.process_group import Follower, Leader
from kvflow_jax.distributed.process_info import Place, is_loopback
from kvflow_jax.errors import ConfigError

_RETRY_S = 0.2
_SHUTDOWN_S = 10  # for processes that end to wait for each other


def lead(place: Place, settings: Settings, timeout_s: float) -> Leader:
    """Wait for all followers, then start JAX with them.

    Args:
        settings: what decides programs and sizes; all processes must have the same.

    Raises:
        ConfigError: the port is taken, or followers do not come within ``timeout_s``.
    """
    leader = Leader(_admit(place, settings, timeout_s))
    port = _free_port(place)
    leader.send(Go(port))
    _start_jax(place, port)
    return leader


def report(place: Place, settings: Settings, timeout_s: float) -> Follower:
    """Report to process 0, wait until all are there, then start JAX with them.

    Raises:
        ConfigError: process 0 cannot be reached within ``timeout_s``, or refuses this one.
    """
    deadline_s = time.monotonic() + timeout_s
    connection = Connection(_reach(place, deadline_s))
    hello = Hello(place.process_id, place.num_processes, socket.gethostname(), dict(settings))
    try:
        connection.send(hello)
        # Process 0 gives up by itself, and says why.
        answer = connection.receive(max(deadline_s - time.monotonic(), 0.0) + HELLO_S)
    except (OSError, EOFError, ValueError) as error:
        connection.close()
        raise ConfigError(
            f"process 0 at {place.host}:{place.port} does not answer ({error}); see its log"
        ) from None
    if not isinstance(answer, Go):
        connection.close()
        raise ConfigError(answer.why if isinstance(answer, Refused | Failed) else f"got {answer}")
    follower = Follower(connection)
    _start_jax(place, answer.jax_port)
    return follower


def _start_jax(place: Place, port: int) -> None:
    address = f"[{place.host}]:{port}" if ":" in place.host else f"{place.host}:{port}"
    # It would take SIGTERM for itself, by which we drain.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        address,
        place.num_processes,
        place.process_id,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        coordinator_bind_address=address if is_loopback(place.host) else None,
        shutdown_timeout_seconds=_SHUTDOWN_S,
    )


def _listen(place: Place, port: int) -> socket.socket:
    if is_loopback(place.host):  # the others are on this machine, too: nobody else need reach it
        found = socket.getaddrinfo(place.host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        return socket.create_server(address, family=family)
    # The others may know this host by other addresses than it does itself: by whichever they come.
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _free_port(place: Place) -> int:
    """For JAX's own coordinator."""
    with _listen(place, 0) as listener:
        return int(listener.getsockname()[1])


def _admit(place: Place, settings: Settings, timeout_s: float) -> Joined:
    """Wait for every follower, and check that it is one."""
    try:
        listener = _listen(place, place.port)
    except OSError as error:
        raise ConfigError(
            f"process 0 cannot listen on {place.host}:{place.port} ({error.strerror}); "
            "choose another port for --coordinator"
        ) from None
    with listener:
        return Admission(place, settings).run(listener, timeout_s)


def _reach(place: Place, deadline_s: float) -> socket.socket:
    """A connection to process 0, which may start later than this one."""
    while True:
        left_s = deadline_s - time.monotonic()
        try:
            return socket.create_connection((place.host, place.port), timeout=max(left_s, 0.1))
        except OSError as error:
            if left_s < _RETRY_S:
                raise ConfigError(
                    f"process 0 cannot be reached at {place.host}:{place.port} "
                    f"({error.strerror or error}): start it, or correct --coordinator"
                ) from None
        time.sleep(_RETRY_S)
