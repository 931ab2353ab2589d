"""The handshake by which process 0 accepts followers."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Mapping

from kvflow_jax.distributed.authentication import authenticate_follower
from kvflow_jax.distributed.connection import Connection
from kvflow_jax.distributed.messages import Hello, Refused
from kvflow_jax.distributed.process_info import ProcessInfo
from kvflow_jax.errors import ConfigError

log = logging.getLogger(__name__)

Settings = Mapping[str, str]  # value by flag
Accepted = Mapping[int, tuple[str, Connection]]  # host name and connection by process id

HELLO_TIMEOUT_S = 10.0  # from connecting to Hello, each of its parts
# Handshakes under way, beside those of followers. Each has a thread; a new one ends the oldest.
MAX_PENDING = 64
_MAX_HELLO_BYTES = 1 << 20
_ACCEPT_POLL_S = 0.2  # between two checks whether all followers are accepted


class Handshakes:
    """Accepts followers, each connection on its own thread: a silent peer delays no other.

    Args:
        settings: value by flag that every process must have been started with.
    """

    def __init__(self, process_info: ProcessInfo, settings: Settings) -> None:
        self._process_info, self._settings = process_info, settings
        self._lock = threading.Lock()  # guards the fields below
        self._accepted: dict[int, tuple[str, Connection]] = {}
        # Connected, no Hello yet, oldest first.
        self._pending: dict[Connection, None] = {}
        self._is_closed = False

    def accept_all(self, listener: socket.socket, timeout_s: float) -> Accepted:
        """Wait for every follower, then close the connections that did not finish a handshake.

        Raises:
            ConfigError: a follower is missing after ``timeout_s`` seconds.
        """
        num_followers = self._process_info.num_processes - 1
        deadline_s = time.monotonic() + timeout_s
        log.info("waiting for %d other processes", num_followers)
        while len(self._accepted) < num_followers and (left_s := deadline_s - time.monotonic()) > 0:
            listener.settimeout(min(left_s, _ACCEPT_POLL_S))
            with contextlib.suppress(TimeoutError):
                self._start_handshake(Connection(listener.accept()[0]))
        with self._lock:
            self._is_closed = True
            pending = list(self._pending)
        for connection in pending:
            connection.close()
        if len(self._accepted) < num_followers:
            self._refuse_all(timeout_s)
        return self._accepted

    def _start_handshake(self, connection: Connection) -> None:
        with self._lock:
            self._pending[connection] = None
            if len(self._pending) > MAX_PENDING + self._process_info.num_processes:
                oldest = next(iter(self._pending))
                del self._pending[oldest]
                oldest.close()
        threading.Thread(
            target=self._handshake, args=[connection], name="kvflow-handshake", daemon=True
        ).start()

    def _handshake(self, connection: Connection) -> None:
        """Run one handshake, on the connection's own thread."""
        try:
            authenticate_follower(connection, self._process_info.secret, HELLO_TIMEOUT_S)
            hello = connection.receive(HELLO_TIMEOUT_S, _MAX_HELLO_BYTES)
            if not isinstance(hello, Hello):
                raise ValueError("the first message is no Hello of kvflow-jax")
            if reason := self._accept(hello, connection):
                connection.send(Refused(reason))
                raise ValueError(reason)
        except (OSError, EOFError, ValueError) as error:
            log.warning("refused a process: %s", error)
            connection.close()
        finally:
            with self._lock:
                self._pending.pop(connection, None)

    def _accept(self, hello: Hello, connection: Connection) -> str:
        """Accept a follower; return why it is refused, "" if accepted."""
        with self._lock:
            if self._is_closed:
                return "process 0 no longer waits for followers"
            if reason := refusal_reason(hello, self._process_info, self._settings, self._accepted):
                return reason
            self._pending.pop(connection, None)
            self._accepted[hello.process_id] = hello.host, connection
            log.info("process %d on %s has joined", hello.process_id, hello.host)
            return ""

    def _refuse_all(self, timeout_s: float) -> None:
        """Refuse the accepted followers too, because others are missing; raise ConfigError."""
        info = self._process_info
        missing = sorted(set(range(1, info.num_processes)) - self._accepted.keys())
        reason = (
            f"process {', '.join(map(str, missing))} did not join at {info.host}:{info.port} "
            f"within {timeout_s:g} s: start it with the same flags and its own --process-id, "
            "or give more time with --join-timeout-s"
        )
        for _, connection in self._accepted.values():
            with contextlib.suppress(OSError):
                connection.send(Refused(reason))
            connection.close()
        raise ConfigError(reason)


def refusal_reason(
    hello: Hello, process_info: ProcessInfo, settings: Settings, accepted: Accepted
) -> str:
    """Return why a process cannot join; "" if it can."""
    process = hello.process_id
    if hello.num_processes != process_info.num_processes:
        return (
            f"process {process} was started with --num-processes {hello.num_processes}, "
            f"process 0 with {process_info.num_processes}"
        )
    if process in accepted:
        return f"there are two processes {process}: give each its own --process-id"
    differences = [
        f"{name} {hello.settings.get(name)}, process 0 with {value}"
        for name, value in settings.items()
        if hello.settings.get(name) != value
    ]
    return f"process {process} was started with {'; '.join(differences)}" if differences else ""
