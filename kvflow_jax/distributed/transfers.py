"""Transfers between host and device in which every process copies its own shards.

    engine thread                        worker thread, one for each direction
    ─────────────                        ─────────────────────────────────────
    submit, poll ── send Copy to the
                    followers, dispatch
                    the copy ──────────▶ wait for the copy, here and on every follower
    poll() ◀──────────── done ────────── publish the transfer, notify

All processes must dispatch in one order, so with several processes a thread may only wait. The next
copy of a direction is therefore dispatched by the engine thread, in ``poll``.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future

import jax

from kvflow_jax.cache.shard_copy import copy_shards
from kvflow_jax.cache.transfer import Direction, Transfer
from kvflow_jax.distributed.leader import RemoteArray, RemoteArrays
from kvflow_jax.distributed.messages import Copy
from kvflow_jax.distributed.process_group import Leader
from kvflow_jax.errors import KVFlowError

log = logging.getLogger(__name__)

# Copies in flight for each direction: enough to keep the link busy until the engine polls again.
MAX_IN_FLIGHT = 4

_InFlight = tuple[Transfer, Future[str]]  # the future: errors of all followers


class CopyError(KVFlowError):
    """A process could not copy its shards."""


class LeaderTransfers:
    """``Transfers`` over all processes: a transfer is done once every process has copied.

    Args:
        bytes_per_s: measured bandwidth of each direction, of all processes together.
        pace_s_per_byte: see ``DeviceTransfers``.
    """

    def __init__(
        self,
        leader: Leader,
        remote_arrays: RemoteArrays,
        bytes_per_s: Mapping[Direction, float],
        *,
        pace_s_per_byte: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        pace = 1 / pace_s_per_byte if pace_s_per_byte else float("inf")
        self.bytes_per_s = {direction: min(rate, pace) for direction, rate in bytes_per_s.items()}
        self._pace_s_per_byte = pace_s_per_byte
        self._leader, self._remote_arrays, self._now = leader, remote_arrays, now
        self._notify: Callable[[], object] = lambda: None
        self._waiting: dict[Direction, deque[Transfer]] = {
            direction: deque() for direction in Direction
        }
        self._num_in_flight = dict.fromkeys(Direction, 0)
        self._done: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
        self._is_closing = threading.Event()
        self._in_flight = {
            direction: queue.SimpleQueue[_InFlight | None]() for direction in Direction
        }
        for direction in Direction:
            threading.Thread(
                target=self._run_worker,
                args=[self._in_flight[direction]],
                name=f"kvflow-{direction.name.lower()}",
                daemon=True,
            ).start()

    def listen(self, notify: Callable[[], object]) -> None:
        """Call ``notify`` whenever a transfer is done or the group breaks, from any thread."""
        self._notify = notify
        self._leader.on_lost(notify)

    def submit(self, transfer: Transfer) -> None:
        """Queue a transfer, and dispatch it unless ``MAX_IN_FLIGHT`` are in flight."""
        self._waiting[transfer.direction].append(transfer)
        self._dispatch(transfer.direction)

    def wait_issued(self, transfer: Transfer, timeout_s: float) -> None:
        """Return at once: the first transfer of a direction is dispatched when submitted."""

    def poll(self) -> list[Transfer]:
        """Return the transfers done since the last call, and dispatch the next.

        Raises:
            HostLostError: a process is gone.
        """
        if self._leader.lost.done():
            self._leader.lost.result()
        done = []
        while not self._done.empty():
            transfer = self._done.get()
            self._num_in_flight[transfer.direction] -= 1
            done.append(transfer)
        for direction in Direction:
            self._dispatch(direction)
        return done

    def close(self) -> None:
        """Stop the workers and close the group."""
        self._is_closing.set()
        for in_flight in self._in_flight.values():
            in_flight.put(None)
        self._leader.close()

    def _dispatch(self, direction: Direction) -> None:
        """Dispatch waiting transfers of a direction, up to ``MAX_IN_FLIGHT``."""
        waiting = self._waiting[direction]
        while waiting and self._num_in_flight[direction] < MAX_IN_FLIGHT:
            self._num_in_flight[direction] += 1
            transfer = waiting.popleft()
            transfer.started_s = self._now()
            transfer.is_issued.set()
            if transfer.is_cancelled:
                transfer.data = None
                self._done.put(transfer)
                self._notify()
                continue
            source: RemoteArray = transfer.data
            array_id, to_host = self._remote_arrays.next_id(), direction is Direction.OFFLOAD
            all_copied = self._leader.expect_copies(array_id)
            self._remote_arrays.send(Copy(array_id, source.array_id, to_host))
            try:
                transfer.data = self._remote_arrays.add(
                    array_id, copy_shards(source.array, to_host=to_host)
                )
            except Exception as error:
                self._remote_arrays.drop(array_id)
                _fail(transfer, error)
            self._in_flight[direction].put((transfer, all_copied))

    def _run_worker(self, in_flight: queue.SimpleQueue[_InFlight | None]) -> None:
        """Wait for one direction's transfers in order, on the direction's own thread."""
        link_free_s = 0.0  # when the transfer before has left the link
        while (item := in_flight.get()) is not None:
            transfer, all_copied = item
            # Transfers in flight share the link: each is timed from when the one before is done.
            transfer.started_s = max(transfer.started_s, link_free_s)
            try:
                if transfer.error is None:
                    jax.block_until_ready(transfer.data.array)
                if reason := self._leader.wait_for(all_copied):
                    raise CopyError(reason)
            except Exception as error:
                _fail(transfer, error)
            left_s = transfer.nbytes * self._pace_s_per_byte + transfer.started_s - self._now()
            if left_s > 0:
                self._is_closing.wait(left_s)
            transfer.finished_s = link_free_s = self._now()
            self._done.put(transfer)
            del transfer, item  # or the last copy would live until the next one comes
            self._notify()


def _fail(transfer: Transfer, error: Exception) -> None:
    # Blocks can always be recomputed: the engine counts the failure and goes on.
    log.warning("a copy from %s failed: %s", transfer.direction.value, error)
    # Without the traceback, whose frames refer to the transfer and its blocks.
    transfer.error, transfer.data = error.with_traceback(None), None
