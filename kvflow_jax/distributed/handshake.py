"""How process 0 takes the others in."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Mapping

from kvflow_jax.distributed.connection import Connection
from kvflow_jax.distributed.messages import Hello, Refused
from kvflow_jax.distributed.process_info import ProcessInfo
from kvflow_jax.errors import ConfigError

log = logging.getLogger(__name__)

Settings = Mapping[str, str]  # by flag
Joined = Mapping[int, tuple[str, Connection]]  # host and connection by process

HELLO_S = 10.0  # within which one that connects says who it is
_MAX_HELLO_BYTES = 1 << 20  # who sends it is not known yet
_LOOK_S = 0.2


class Handshakes:
    """Whoever connects is heard on a thread of its own: one that is silent delays nobody.

    Args:
        settings: what every process must have been started with.
    """

    def __init__(self, process_info: ProcessInfo, settings: Settings) -> None:
        self._process_info, self._settings = process_info, settings
        self._lock = threading.Lock()  # guards the fields up to the next blank line
        self._joined: dict[int, tuple[str, Connection]] = {}
        self._strangers: set[Connection] = set()  # which have not said who they are
        self._is_over = False

    def run(self, listener: socket.socket, timeout_s: float) -> Joined:
        """Every follower there is to be.

        Raises:
            ConfigError: they do not come within ``timeout_s``.
        """
        deadline_s, num = time.monotonic() + timeout_s, self._process_info.num_processes - 1
        log.info("waiting for %d other processes", num)
        while len(self._joined) < num and (left_s := deadline_s - time.monotonic()) > 0:
            listener.settimeout(min(left_s, _LOOK_S))
            with contextlib.suppress(TimeoutError):
                self._hear(Connection(listener.accept()[0]))
        with self._lock:
            self._is_over = True
            strangers = list(self._strangers)
        for connection in strangers:
            connection.close()
        if len(self._joined) < num:
            self._give_up(timeout_s)
        return self._joined

    def _hear(self, connection: Connection) -> None:
        with self._lock:
            self._strangers.add(connection)
        threading.Thread(
            target=self._meet, args=[connection], name="kvflow-admit", daemon=True
        ).start()

    def _meet(self, connection: Connection) -> None:
        """On a thread of its own, one a connection."""
        try:
            hello = connection.receive(HELLO_S, _MAX_HELLO_BYTES)
            if not isinstance(hello, Hello):
                raise ValueError("it is no process of ours")
            if why_not := self._take(hello, connection):
                connection.send(Refused(why_not))
                raise ValueError(why_not)
        except (OSError, EOFError, ValueError) as error:
            log.warning("refused a process: %s", error)
            connection.close()
        finally:
            with self._lock:
                self._strangers.discard(connection)

    def _take(self, hello: Hello, connection: Connection) -> str:
        """Let a process join; why it may not, "" where it may."""
        with self._lock:
            if self._is_over:
                return "process 0 waits no longer"
            if why_not := refusal_reason(hello, self._process_info, self._settings, self._joined):
                return why_not
            self._strangers.discard(connection)
            self._joined[hello.process_id] = hello.host, connection
            log.info("process %d on %s is there", hello.process_id, hello.host)
            return ""

    def _give_up(self, timeout_s: float) -> None:
        missing = sorted(set(range(1, self._process_info.num_processes)) - self._joined.keys())
        why = (
            f"process {', '.join(map(str, missing))} did not come to "
            f"{self._process_info.host}:{self._process_info.port} within {timeout_s:g} s: start it with the same "
            "flags and its own --process-id, or give more time with --join-timeout-s"
        )
        for _, connection in self._joined.values():
            with contextlib.suppress(OSError):
                connection.send(Refused(why))
            connection.close()
        raise ConfigError(why)


def refusal_reason(hello: Hello, process_info: ProcessInfo, settings: Settings, joined: Joined) -> str:
    """Why a process may not join; "" where it may."""
    who = hello.process_id
    if hello.num_processes != process_info.num_processes:
        return (
            f"process {who} was started with --num-processes {hello.num_processes}, "
            f"process 0 with {process_info.num_processes}"
        )
    if who in joined:
        return f"there is a process {who} already: give each a --process-id of its own"
    other = [
        f"{name} {hello.settings.get(name)}, process 0 with {value}"
        for name, value in settings.items()
        if hello.settings.get(name) != value
    ]
    return f"process {who} was started with {'; '.join(other)}" if other else ""
