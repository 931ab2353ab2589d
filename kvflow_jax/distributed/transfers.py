"""Copies between host and device, of which every process makes its part.

    engine thread                          lane thread, one a direction
    ─────────────                          ────────────────────────────
    submit, poll ── tell the followers,
                    begin to copy ───────▶ wait until it is there, here and on every follower
    poll() ◀──────────────done──────────── hand it over, notify

With several processes only waiting may happen on threads: what is dispatched must come in one
order. So a direction's next copy begins when the engine takes its turn.
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

MAX_ISSUED = 4  # under way in a direction: enough for the link until the engine's next turn

_Issued = tuple[Transfer, Future[str]]  # what every follower says of it


class CopyError(KVFlowError):
    """A process could not copy its part."""


class LeaderTransfers:
    """``Transfers`` over all processes: a copy is there when each has its part.

    Args:
        bytes_per_s: of each direction, measured; all processes together.
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
        self.bytes_per_s = {way: min(rate, pace) for way, rate in bytes_per_s.items()}
        self._pace_s_per_byte = pace_s_per_byte
        self._leader, self._remote_arrays, self._now = leader, remote_arrays, now
        self._notify: Callable[[], object] = lambda: None
        self._queued: dict[Direction, deque[Transfer]] = {way: deque() for way in Direction}
        self._num_issued = dict.fromkeys(Direction, 0)
        self._done: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
        self._is_closing = threading.Event()
        self._lanes = {way: queue.SimpleQueue[_Issued | None]() for way in Direction}
        for way in Direction:
            threading.Thread(
                target=self._run,
                args=[self._lanes[way]],
                name=f"kvflow-{way.name.lower()}",
                daemon=True,
            ).start()

    def listen(self, notify: Callable[[], object]) -> None:
        """Call ``notify`` whenever a transfer is done, or the group is broken."""
        self._notify = notify
        self._leader.on_lost(notify)

    def submit(self, transfer: Transfer) -> None:
        self._queued[transfer.direction].append(transfer)
        self._issue(transfer.direction)

    def wait_issued(self, transfer: Transfer, timeout_s: float) -> None:
        """Nothing to wait for: what is first in its direction was begun as it was submitted."""

    def poll(self) -> list[Transfer]:
        """Transfers done since the last call; begins those that come next.

        Raises:
            HostLostError: a process is gone.
        """
        if self._leader.lost.done():
            self._leader.lost.result()
        done = []
        while not self._done.empty():
            transfer = self._done.get()
            self._num_issued[transfer.direction] -= 1
            done.append(transfer)
        for way in Direction:
            self._issue(way)
        return done

    def close(self) -> None:
        self._is_closing.set()
        for lane in self._lanes.values():
            lane.put(None)
        self._leader.close()

    def _issue(self, way: Direction) -> None:
        queued = self._queued[way]
        while queued and self._num_issued[way] < MAX_ISSUED:
            self._num_issued[way] += 1
            transfer = queued.popleft()
            transfer.started_s = self._now()
            transfer.is_issued.set()
            if transfer.is_cancelled:
                transfer.data = None
                self._done.put(transfer)
                self._notify()
                continue
            source: RemoteArray = transfer.data
            number, to_host = self._remote_arrays.next_number(), way is Direction.OFFLOAD
            copied = self._leader.await_copies(number)
            self._remote_arrays.tell(Copy(number, source.number, to_host))
            try:
                transfer.data = self._remote_arrays.keep(
                    number, copy_shards(source.array, to_host=to_host)
                )
            except Exception as error:
                self._remote_arrays.forget(number)
                _fail(transfer, error)
            self._lanes[way].put((transfer, copied))

    def _run(self, lane: queue.SimpleQueue[_Issued | None]) -> None:
        free_s = 0.0  # when the copy before has left the link
        while (issued := lane.get()) is not None:
            transfer, copied = issued
            # Several under way share the link: each counts from when it had it to itself.
            transfer.started_s = max(transfer.started_s, free_s)
            try:
                if transfer.error is None:
                    jax.block_until_ready(transfer.data.array)
                if why := self._leader.wait_for(copied):
                    raise CopyError(why)
            except Exception as error:
                _fail(transfer, error)
            rest_s = transfer.nbytes * self._pace_s_per_byte + transfer.started_s - self._now()
            if rest_s > 0:
                self._is_closing.wait(rest_s)
            transfer.finished_s = free_s = self._now()
            self._done.put(transfer)
            del transfer, issued  # or the last copy would stay until the next
            self._notify()


def _fail(transfer: Transfer, error: Exception) -> None:
    # Whatever it is, the blocks can be computed again: the engine counts it and goes on.
    log.warning("a copy from %s failed: %s", transfer.direction.value, error)
    # Without its traceback, whose frames hold the transfer and the blocks.
    transfer.error, transfer.data = error.with_traceback(None), None
