"""How processes find each other, agree, and notice that one is gone.

JAX ends a process that waits for another in vain, and cannot leave a computation that another does
not join. So processes meet over connections of their own before they start JAX; and one that finds
the group broken says so, lets go of its callers, and ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import jax

from kvflow_jax.errors import ConfigError, HostLostError
from kvflow_jax.hosts.connection import Connection
from kvflow_jax.hosts.messages import (
    Close,
    Copied,
    Failed,
    Go,
    Heard,
    Hello,
    Message,
    Refused,
    Say,
    Stop,
)
from kvflow_jax.hosts.place import Place, is_loopback

log = logging.getLogger(__name__)

T = TypeVar("T")
Settings = Mapping[str, str]  # by flag

GRACE_S = 3.0  # in which callers learn that the group is broken, before the process ends
_RETRY_S = 0.2
_HELLO_S = 10.0
_SHUTDOWN_S = 10  # for processes that end to wait for each other


class Leader:
    """Process 0's side of the group.

    Attributes:
        lost: fails, with a HostLostError, once a follower is gone.
    """

    def __init__(self, followers: Mapping[int, tuple[str, Connection]]) -> None:
        self.lost: Future[None] = Future()
        self._followers = followers  # host and connection by process
        self._said: dict[int, queue.SimpleQueue[object]] = {
            process: queue.SimpleQueue() for process in followers
        }
        self._copies: dict[int, tuple[list[str], Future[str]]] = {}  # by number
        self._listener: Callable[[], object] = lambda: None
        self._is_closing = False
        self._lock = threading.Lock()  # guards _copies, and that what is lost is lost once
        self._waiter = ThreadPoolExecutor(1, thread_name_prefix="kvflow-wait")
        for process in followers:
            threading.Thread(
                target=self._listen, args=[process], name=f"kvflow-host-{process}", daemon=True
            ).start()

    @classmethod
    def join(cls, place: Place, settings: Settings, timeout_s: float) -> Leader:
        """Wait for all followers, then start JAX with them.

        Raises:
            ConfigError: a port is taken, followers do not come within ``timeout_s``.
        """
        joined = _admit(place, settings, timeout_s)
        port = _free_port(place)
        leader = cls(joined)
        leader.send(Go(port))
        _start_jax(place, port)
        return leader

    def gather(self, value: T) -> list[T]:
        """What every process says when all are asked, by process."""
        values = [value]
        for process in sorted(self._followers):
            said = self._said[process]
            values.append(self.until(self._waiter.submit(said.get)))  # type: ignore[arg-type]
        self.send(Heard(values))
        return values

    def send(self, message: Message) -> None:
        """To every follower.

        Raises:
            HostLostError: one is gone.
        """
        for process, (_, connection) in self._followers.items():
            try:
                connection.send(message)
            except OSError as error:
                self._lose(process, f"is gone: {error}")
        if self.lost.done():
            self.lost.result()

    def await_copies(self, number: int) -> Future[str]:
        """Call before a ``Copy`` is sent: done once all followers have it; "" or why one failed."""
        whole: Future[str] = Future()
        with self._lock:
            self._copies[number] = [], whole
        return whole

    def until_ready(self, array: jax.Array) -> None:
        """Wait for the device.

        Raises:
            HostLostError: a follower is gone, without which the device may never end.
        """
        if not array.is_ready():  # type: ignore[attr-defined]
            self.until(self._waiter.submit(jax.block_until_ready, array))

    def until(self, done: Future[T]) -> T:
        """Wait for a result, while the group is whole."""
        both: list[Future[Any]] = [done, self.lost]
        wait(both, return_when=FIRST_COMPLETED)
        if not done.done():
            self.lost.result()
        return done.result()

    def on_lost(self, listener: Callable[[], object]) -> None:
        """Call once a follower is gone; from any thread."""
        self._listener = listener

    @contextlib.contextmanager
    def in_step(self) -> Iterator[None]:
        """What is done here and by the followers: where it fails here alone, nobody can go on."""
        try:
            yield
        except Exception as error:
            self.fail(f"process 0 is out of step with the others: {error}")
            raise

    def fail(self, why: str) -> None:
        """End all processes."""
        with contextlib.suppress(HostLostError):
            self.send(Failed(why))
        self._end(why)

    def close(self) -> None:
        """The work is done: the followers may end."""
        if self._is_closing:
            return
        self._is_closing = True
        with contextlib.suppress(HostLostError):
            self.send(Close())

    def _listen(self, process: int) -> None:
        """On a thread of its own, one a follower."""
        _, connection = self._followers[process]
        try:
            while True:
                match connection.receive():
                    case Say(value):
                        self._said[process].put(value)
                    case Copied(number, error):
                        self._note_copy(number, error)
                    case Stop():
                        # As though this process had been told itself.
                        log.info("process %d has been told to end", process)
                        os.kill(os.getpid(), signal.SIGTERM)
                    case Failed(why):
                        self._lose(process, f"has failed: {why}")
                        return
                    case message:
                        raise ValueError(f"unexpected: {message}")
        except (OSError, EOFError, ValueError) as error:
            self._lose(process, f"is gone: {error}")

    def _note_copy(self, number: int, error: str) -> None:
        with self._lock:
            errors, whole = self._copies[number]
            errors.append(error)
            if len(errors) < len(self._followers):
                return
            del self._copies[number]
        whole.set_result("; ".join(error for error in errors if error))

    def _lose(self, process: int, why: str) -> None:
        if not self._is_closing:
            host, _ = self._followers[process]
            self._end(f"process {process} on {host} {why}")

    def _end(self, why: str) -> None:
        with self._lock:
            if self.lost.done():
                return
            log.critical("%s; ending: start all processes again", why)
            self.lost.set_exception(HostLostError(why))
        _end_soon()
        self._listener()


class Follower:
    """The group as every other process sees it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._heard: queue.SimpleQueue[list[object]] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="kvflow-host-0", daemon=True).start()

    @classmethod
    def join(cls, place: Place, settings: Settings, timeout_s: float) -> Follower:
        """Report to process 0, wait until all are there, then start JAX with them.

        Raises:
            ConfigError: process 0 cannot be reached within ``timeout_s``, or refuses this one.
        """
        deadline_s = time.monotonic() + timeout_s
        connection = Connection(_reach(place, deadline_s))
        try:
            connection.send(
                Hello(place.process_id, place.num_processes, socket.gethostname(), dict(settings))
            )
            # Process 0 gives up by itself, and says why.
            answer = connection.receive(max(deadline_s - time.monotonic(), 0.0) + _HELLO_S)
        except (OSError, EOFError, ValueError) as error:
            connection.close()
            raise ConfigError(
                f"process 0 at {place.host}:{place.port} does not answer ({error}); see its log"
            ) from None
        if not isinstance(answer, Go):
            connection.close()
            raise ConfigError(answer.why if isinstance(answer, Refused) else f"got {answer}")
        follower = cls(connection)
        _start_jax(place, answer.jax_port)
        return follower

    def gather(self, value: T) -> list[T]:
        """What every process says when all are asked, by process."""
        self.send(Say(value))
        return self._heard.get()  # type: ignore[return-value]

    def send(self, message: Message) -> None:
        self._connection.send(message)

    def messages(self) -> Iterator[Message]:
        """What the leader does, until it closes."""
        while not isinstance(message := self._messages.get(), Close):
            yield message

    def _listen(self) -> None:
        """On a thread of its own: whatever the others do, the leader's end is noticed."""
        try:
            while True:
                match self._connection.receive():
                    case Heard(values):
                        self._heard.put(values)
                    case Close():
                        self._messages.put(Close())
                        return
                    case Failed(why):
                        end_now(f"process 0 has failed: {why}")
                    case message:
                        self._messages.put(message)
        except (OSError, EOFError, ValueError) as error:
            end_now(f"process 0 is gone ({error})")


Group = Leader | Follower


def end_now(why: str) -> None:
    """End the process at once: JAX's own end waits for processes that will not come."""
    log.critical("%s; ending", why)
    logging.shutdown()
    os._exit(1)


def _end_soon() -> None:
    def end() -> None:
        time.sleep(GRACE_S)
        logging.shutdown()
        os._exit(1)

    threading.Thread(target=end, name="kvflow-end", daemon=True).start()


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
    # Where the others are on this machine, too, nobody else need reach it.
    host = place.host if is_loopback(place.host) else ""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)


def _free_port(place: Place) -> int:
    """For JAX's own coordinator."""
    with _listen(place, 0) as listener:
        return int(listener.getsockname()[1])


def _admit(place: Place, settings: Settings, timeout_s: float) -> dict[int, tuple[str, Connection]]:
    """Wait for every follower, and check that it is one."""
    deadline_s = time.monotonic() + timeout_s
    joined: dict[int, tuple[str, Connection]] = {}
    try:
        listener = _listen(place, place.port)
    except OSError as error:
        raise ConfigError(
            f"process 0 cannot listen on {place.host}:{place.port} ({error.strerror}); "
            "choose another port for --coordinator"
        ) from None
    with listener:
        log.info("waiting for %d other processes", place.num_processes - 1)
        while len(joined) < place.num_processes - 1:
            listener.settimeout(max(deadline_s - time.monotonic(), 0.001))
            try:
                sock, _ = listener.accept()
            except TimeoutError:
                missing = sorted(set(range(1, place.num_processes)) - joined.keys())
                why = (
                    f"process {', '.join(map(str, missing))} did not come to "
                    f"{place.host}:{place.port} within {timeout_s:g} s: start it with the same "
                    "flags and its own --process-id, or give more time with --join-timeout-s"
                )
                for _, connection in joined.values():
                    with contextlib.suppress(OSError):
                        connection.send(Refused(why))
                    connection.close()
                raise ConfigError(why) from None
            connection = Connection(sock)
            try:
                hello = connection.receive(_HELLO_S)
                if not isinstance(hello, Hello):
                    raise ValueError("it is no process of ours")
                if why_not := _objection(hello, place, settings, joined):
                    connection.send(Refused(why_not))
                    raise ValueError(why_not)
            except (OSError, EOFError, ValueError) as error:
                log.warning("refused a process: %s", error)
                connection.close()
                continue
            joined[hello.process_id] = hello.host, connection
            log.info("process %d on %s is there", hello.process_id, hello.host)
    return joined


def _objection(
    hello: Hello, place: Place, settings: Settings, joined: Mapping[int, tuple[str, Connection]]
) -> str:
    """Why a process may not join; "" where it may."""
    who = hello.process_id
    if hello.num_processes != place.num_processes:
        return (
            f"process {who} was started with --num-processes {hello.num_processes}, "
            f"process 0 with {place.num_processes}"
        )
    if who in joined:
        return f"there is a process {who} already: give each a --process-id of its own"
    other = [
        f"{name} {hello.settings.get(name)}, process 0 with {value}"
        for name, value in settings.items()
        if hello.settings.get(name) != value
    ]
    return f"process {who} was started with {'; '.join(other)}" if other else ""


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
