"""The group of processes that share a model: messages, gathers, heartbeats, failure detection.

JAX cannot abandon a collective that another process never joins. Therefore a process that finds
the group broken fails the requests of its callers and exits.
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

from kvflow_jax.distributed.connection import Connection, frame
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

HEARTBEAT_S = 1.0  # between two heartbeats of a follower
HEARTBEAT_TIMEOUT_S = 5.0  # without a message: the follower is stalled, but may recover
DETECT_S = 1.0  # from a failed collective to the broken connection that explains it
GRACE_S = 3.0  # from the break of the group to the leader's exit, so that callers get their errors


class Leader:
    """Process 0's side of the group.

    Attributes:
        lost: fails with HostLostError once the group is broken.
    """

    def __init__(self, followers: Mapping[int, tuple[str, Connection]]) -> None:
        self.lost: Future[None] = Future()
        self._followers = followers  # host name and connection by process id
        self._last_message_s = dict.fromkeys(followers, time.monotonic())  # by process id
        self._gathered: dict[int, queue.SimpleQueue[object]] = {
            process: queue.SimpleQueue() for process in followers
        }
        # Errors of the followers that have answered, and the future for all, by array id.
        self._copies: dict[int, tuple[list[str], Future[str]]] = {}
        self._on_lost: Callable[[], object] = lambda: None
        self._is_closing = False
        self._lock = threading.Lock()  # guards _copies and the transition of ``lost``
        self._waiter = ThreadPoolExecutor(1, thread_name_prefix="kvflow-wait")
        for process in followers:
            threading.Thread(
                target=self._receive_loop,
                args=[process],
                name=f"kvflow-host-{process}",
                daemon=True,
            ).start()

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by process id. A collective: all must call it."""
        values = [value]
        for process in sorted(self._followers):
            received = self._waiter.submit(self._gathered[process].get)
            values.append(self.wait_for(received))  # type: ignore[arg-type]
        self.send(Gathered(values))
        return values

    def send(self, message: Message) -> None:
        """Send a message to every follower.

        Raises:
            HostLostError: a follower is gone.
        """
        data = frame(message)
        for process, (_, connection) in self._followers.items():
            try:
                connection.send_frame(data)
            except OSError as error:
                self._lose(process, f"is gone: {error}")
        if self.lost.done():
            self.lost.result()

    def expect_copies(self, array_id: int) -> Future[str]:
        """Return a future of a ``Copy``'s outcome on all followers; call before sending it.

        Its result is the errors, "" if no follower failed.
        """
        all_copied: Future[str] = Future()
        with self._lock:
            self._copies[array_id] = [], all_copied
        return all_copied

    def block_until_ready(self, array: jax.Array) -> None:
        """Wait for the device.

        Raises:
            HostLostError: a follower is gone, so the device may never finish.
        """
        if not array.is_ready():  # type: ignore[attr-defined]
            self.wait_for(self._waiter.submit(jax.block_until_ready, array))

    def wait_for(self, future: Future[T]) -> T:
        """Return a future's result, or raise HostLostError as soon as the group is broken."""
        futures: list[Future[Any]] = [future, self.lost]
        wait(futures, return_when=FIRST_COMPLETED)
        if future.done() and future.exception() is not None:
            # A collective may fail before the connection breaks, but only the connection shows
            # which process is gone.
            wait([self.lost], timeout=DETECT_S)
            if self.lost.done():
                self.lost.result()
        if not future.done():
            self.lost.result()
        return future.result()

    def stalled_by(self) -> str:
        """Return which followers send no heartbeats, so that steps wait; "" if none.

        Any thread may call it. JAX aborts all processes when one has missed its own heartbeats for
        100 s; until then the follower may recover.
        """
        now_s = time.monotonic()
        return "; ".join(
            f"process {process} on {host} has not answered for {silent_s:.0f} s"
            for process, (host, _) in self._followers.items()
            if (silent_s := now_s - self._last_message_s[process]) > HEARTBEAT_TIMEOUT_S
        )

    def on_lost(self, callback: Callable[[], object]) -> None:
        """Set a callback for the break of the group; it runs on any thread."""
        self._on_lost = callback

    @contextlib.contextmanager
    def lockstep(self) -> Iterator[None]:
        """Break the group if the body fails: followers have made the same call and gone on."""
        try:
            yield
        except Exception as error:
            reason = f"process 0 is out of lockstep with the others: {error}"
            log.critical("%s; exiting: start all processes again", reason)
            self.fail(reason)
            raise

    def fail(self, reason: str) -> None:
        """Break the group: followers exit now, this process once callers have their errors."""
        with self._lock:
            if self.lost.done():
                return
            self.lost.set_exception(HostLostError(reason))
        _exit_soon()
        self._on_lost()
        for _, connection in self._followers.values():
            with contextlib.suppress(OSError):
                connection.send(Failed(reason))

    def close(self) -> None:
        """Close the group after the last request: followers exit. Idempotent."""
        if self._is_closing or self.lost.done():
            return
        self._is_closing = True
        with contextlib.suppress(HostLostError):
            self.send(Close())

    def _receive_loop(self, process: int) -> None:
        """Handle a follower's messages, on that follower's own thread."""
        _, connection = self._followers[process]
        try:
            while True:
                message = connection.receive()
                self._record_message_time(process)
                match message:
                    case Heartbeat():
                        pass
                    case Gather(value):
                        self._gathered[process].put(value)
                    case Copied(array_id, error):
                        self._record_copy(array_id, error)
                    case RequestShutdown():
                        # Shut down as if this process had received the signal.
                        log.info("process %d was asked to stop", process)
                        os.kill(os.getpid(), signal.SIGTERM)
                    case Failed(reason):
                        self._lose(process, f"has failed: {reason}")
                        return
                    case _:
                        raise ValueError(f"unexpected message: {message}")
        except (OSError, EOFError, ValueError) as error:
            self._lose(process, f"is gone: {error}")

    def _record_message_time(self, process: int) -> None:
        now_s = time.monotonic()
        silent_s = now_s - self._last_message_s[process]
        self._last_message_s[process] = now_s
        if silent_s > HEARTBEAT_TIMEOUT_S:
            log.warning("process %d answers again, after %.0f s", process, silent_s)

    def _record_copy(self, array_id: int, error: str) -> None:
        with self._lock:
            errors, all_copied = self._copies[array_id]
            errors.append(error)
            if len(errors) < len(self._followers):
                return
            del self._copies[array_id]
        all_copied.set_result("; ".join(error for error in errors if error))

    def _lose(self, process: int, reason: str) -> None:
        if self._is_closing or self.lost.done():
            return
        host, _ = self._followers[process]
        log.critical(
            "process %d on %s %s; exiting: start all processes again", process, host, reason
        )
        self.fail(f"process {process} on {host} {reason}")


class Follower:
    """A follower's side of the group."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._gathered: queue.SimpleQueue[list[object]] = queue.SimpleQueue()
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._is_closed = threading.Event()
        self._has_requested_shutdown = False
        self._receiver = threading.Thread(
            target=self._receive_loop, name="kvflow-host-0", daemon=True
        )
        self._receiver.start()
        threading.Thread(target=self._send_heartbeats, name="kvflow-heartbeat", daemon=True).start()

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by process id. A collective: all must call it."""
        self.send(Gather(value))
        return self._gathered.get()  # type: ignore[return-value]

    def send(self, message: Message) -> None:
        """Send a message to the leader."""
        self._connection.send(message)

    def request_shutdown(self) -> None:
        """Ask the leader to drain and close. However the leader then ends, this process exits 0."""
        self._has_requested_shutdown = True
        self.send(RequestShutdown())

    def messages(self) -> Iterator[Message]:
        """Yield the leader's calls until it closes the group."""
        while not isinstance(message := self._messages.get(), Close):
            yield message

    def _receive_loop(self) -> None:
        """Receive on its own thread, independent of the devices, and notice the leader's exit."""
        try:
            while True:
                match self._connection.receive():
                    case Gathered(values):
                        self._gathered.put(values)
                    case Close():
                        self._is_closed.set()
                        self._messages.put(Close())
                        return
                    case Failed(reason):
                        exit_now(f"process 0 has failed: {reason}")
                    case message:
                        self._messages.put(message)
        except (OSError, EOFError, ValueError) as error:
            # A leader that was still loading has no group to close: its exit is a normal end.
            if self._has_requested_shutdown:
                log.info("process 0 has ended; stopping")
                _exit(0)
            else:
                exit_now(f"process 0 is gone ({error})")

    def _send_heartbeats(self) -> None:
        """Send heartbeats on its own thread, independent of the devices."""
        # The receiver handles a broken connection.
        with contextlib.suppress(OSError):
            while not self._is_closed.wait(HEARTBEAT_S):
                self.send(Heartbeat())


Group = Leader | Follower


def exit_now(reason: str) -> None:
    """Exit at once with code 1: JAX's own shutdown waits for processes that are gone."""
    log.critical("%s; exiting", reason)
    _exit(1)


def _exit_soon() -> None:
    def exit_after_grace() -> None:
        time.sleep(GRACE_S)
        _exit(1)

    threading.Thread(target=exit_after_grace, name="kvflow-exit", daemon=True).start()


def _exit(exit_code: int) -> None:
    logging.shutdown()
    os._exit(exit_code)
