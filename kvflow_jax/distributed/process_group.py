"""How processes that share a model talk, agree, and notice that one is gone.

JAX cannot leave a computation that another process does not join. So one that finds the group
broken says so, lets go of its callers, and ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import jax

from kvflow_jax.distributed.connection import Connection, framed
from kvflow_jax.distributed.messages import (
    Close,
    Copied,
    Failed,
    Gather,
    Gathered,
    Heartbeat,
    Message,
    RequestShutdown,
)
from kvflow_jax.errors import HostLostError

log = logging.getLogger(__name__)

T = TypeVar("T")

HEARTBEAT_S = 1.0  # a follower says so often that it is there
HEARTBEAT_TIMEOUT_S = 5.0  # after which it counts as stopped, or cut off; it may come back
DETECT_S = 1.0  # in which the end of a process is seen by all that wait for it
GRACE_S = 3.0  # in which callers learn that the group is broken, before the process ends


class Leader:
    """Process 0's side of the group.

    Attributes:
        lost: fails, with a HostLostError, once the group is broken.
    """

    def __init__(self, followers: Mapping[int, tuple[str, Connection]]) -> None:
        self.lost: Future[None] = Future()
        self._followers = followers  # host and connection by process
        self._heard_s = dict.fromkeys(followers, time.monotonic())  # when last, by process
        self._said: dict[int, queue.SimpleQueue[object]] = {
            process: queue.SimpleQueue() for process in followers
        }
        self._copies: dict[int, tuple[list[str], Future[str]]] = {}  # by number
        self._listener: Callable[[], object] = lambda: None
        self._is_closing = False
        self._lock = threading.Lock()  # guards _copies, and that the group breaks once
        self._waiter = ThreadPoolExecutor(1, thread_name_prefix="kvflow-wait")
        for process in followers:
            threading.Thread(
                target=self._listen, args=[process], name=f"kvflow-host-{process}", daemon=True
            ).start()

    def gather(self, value: T) -> list[T]:
        """What every process says when all are asked, by process."""
        values = [value]
        for process in sorted(self._followers):
            said = self._said[process]
            values.append(self.wait_for(self._waiter.submit(said.get)))  # type: ignore[arg-type]
        self.send(Gathered(values))
        return values

    def send(self, message: Message) -> None:
        """To every follower.

        Raises:
            HostLostError: one is gone.
        """
        data = framed(message)
        for process, (_, connection) in self._followers.items():
            try:
                connection.send_framed(data)
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

    def block_until_ready(self, array: jax.Array) -> None:
        """Wait for the device.

        Raises:
            HostLostError: a follower is gone, without which the device may never end.
        """
        if not array.is_ready():  # type: ignore[attr-defined]
            self.wait_for(self._waiter.submit(jax.block_until_ready, array))

    def wait_for(self, done: Future[T]) -> T:
        """Wait for a result, while the group is whole."""
        both: list[Future[Any]] = [done, self.lost]
        wait(both, return_when=FIRST_COMPLETED)
        if done.done() and done.exception() is not None:
            # The devices may be the first to notice that a process is gone, but not which.
            wait([self.lost], timeout=DETECT_S)
            if self.lost.done():
                self.lost.result()
        if not done.done():
            self.lost.result()
        return done.result()

    def stalled_by(self) -> str:
        """Who has said nothing for a while, so that steps wait; "" where nobody. From any thread.

        JAX ends all processes when it has missed one for 100 s; until then it may come back.
        """
        now_s = time.monotonic()
        return "; ".join(
            f"process {process} on {host} has not answered for {silent_s:.0f} s"
            for process, (host, _) in self._followers.items()
            if (silent_s := now_s - self._heard_s[process]) > HEARTBEAT_TIMEOUT_S
        )

    def on_lost(self, listener: Callable[[], object]) -> None:
        """Call once the group is broken; from any thread."""
        self._listener = listener

    @contextlib.contextmanager
    def lockstep(self) -> Iterator[None]:
        """What is done here and by the followers: where it fails here alone, nobody can go on."""
        try:
            yield
        except Exception as error:
            why = f"process 0 is out of step with the others: {error}"
            log.critical("%s; ending: start all processes again", why)
            self.fail(why)
            raise

    def fail(self, why: str) -> None:
        """End all processes, this one soon: its callers are to learn of it."""
        with self._lock:
            if self.lost.done():
                return
            self.lost.set_exception(HostLostError(why))
        _exit_soon()
        self._listener()
        for _, connection in self._followers.values():
            with contextlib.suppress(OSError):
                connection.send(Failed(why))

    def close(self) -> None:
        """The work is done: the followers may end."""
        if self._is_closing or self.lost.done():
            return
        self._is_closing = True
        with contextlib.suppress(HostLostError):
            self.send(Close())

    def _listen(self, process: int) -> None:
        """On a thread of its own, one a follower."""
        _, connection = self._followers[process]
        try:
            while True:
                message = connection.receive()
                self._note_heard(process)
                match message:
                    case Heartbeat():
                        pass
                    case Gather(value):
                        self._said[process].put(value)
                    case Copied(number, error):
                        self._note_copy(number, error)
                    case RequestShutdown():
                        # As though this process had been told itself.
                        log.info("process %d has been told to end", process)
                        os.kill(os.getpid(), signal.SIGTERM)
                    case Failed(why):
                        self._lose(process, f"has failed: {why}")
                        return
                    case _:
                        raise ValueError(f"unexpected: {message}")
        except (OSError, EOFError, ValueError) as error:
            self._lose(process, f"is gone: {error}")

    def _note_heard(self, process: int) -> None:
        now_s = time.monotonic()
        silent_s, self._heard_s[process] = now_s - self._heard_s[process], now_s
        if silent_s > HEARTBEAT_TIMEOUT_S:
            log.warning("process %d answers again, after %.0f s", process, silent_s)

    def _note_copy(self, number: int, error: str) -> None:
        with self._lock:
            errors, whole = self._copies[number]
            errors.append(error)
            if len(errors) < len(self._followers):
                return
            del self._copies[number]
        whole.set_result("; ".join(error for error in errors if error))

    def _lose(self, process: int, why: str) -> None:
        if self._is_closing or self.lost.done():
            return
        host, _ = self._followers[process]
        log.critical("process %d on %s %s; ending: start all processes again", process, host, why)
        self.fail(f"process {process} on {host} {why}")


class Follower:
    """The group as every other process sees it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._heard: queue.SimpleQueue[list[object]] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._is_over = threading.Event()
        self._has_asked = False  # that all end
        self._listener = threading.Thread(target=self._listen, name="kvflow-host-0", daemon=True)
        self._listener.start()
        threading.Thread(target=self._beat, name="kvflow-beat", daemon=True).start()

    def gather(self, value: T) -> list[T]:
        """What every process says when all are asked, by process."""
        self.send(Gather(value))
        return self._heard.get()  # type: ignore[return-value]

    def send(self, message: Message) -> None:
        self._connection.send(message)

    def request_shutdown(self) -> None:
        """The leader is to drain; however it ends then, this process has ended well."""
        self._has_asked = True
        self.send(RequestShutdown())

    def messages(self) -> Iterator[Message]:
        """What the leader does, until it closes."""
        while not isinstance(message := self._messages.get(), Close):
            yield message

    def _listen(self) -> None:
        """On a thread of its own: whatever the others do, the leader's end is noticed."""
        try:
            while True:
                match self._connection.receive():
                    case Gathered(values):
                        self._heard.put(values)
                    case Close():
                        self._is_over.set()
                        self._messages.put(Close())
                        return
                    case Failed(why):
                        exit_now(f"process 0 has failed: {why}")
                    case message:
                        self._messages.put(message)
        except (OSError, EOFError, ValueError) as error:
            if self._has_asked:  # while it was loading: there was nothing to close
                log.info("process 0 has ended; stopping")
                _exit(0)
            else:
                exit_now(f"process 0 is gone ({error})")

    def _beat(self) -> None:
        """On a thread of its own: whatever the devices wait for, the leader knows who is there."""
        with contextlib.suppress(OSError):  # who listens knows that the leader is gone
            while not self._is_over.wait(HEARTBEAT_S):
                self.send(Heartbeat())


Group = Leader | Follower


def exit_now(why: str) -> None:
    """End the process at once: JAX's own end waits for processes that will not come."""
    log.critical("%s; ending", why)
    _exit(1)


def _exit_soon() -> None:
    def end() -> None:
        time.sleep(GRACE_S)
        _exit(1)

    threading.Thread(target=end, name="kvflow-end", daemon=True).start()


def _exit(exit_code: int) -> None:
    logging.shutdown()
    os._exit(exit_code)
