"""Copies of extents between host and device, on one worker thread per direction.

    engine thread                         worker thread, one per direction
    ─────────────                         ────────────────────────────────
    submit(transfer) ───────queue───────▶ device_put into a new buffer ──▶ "issued"
    wait_issued (bounded)                 wait for the copy, pace it
    poll() ◀──────────────done─────────── return it, notify

A worker never accesses the pool: the engine writes loaded extents into the pool, and reads extents
to be offloaded out of it. Few extents are in flight at a time, so that a more urgent transfer does
not wait for long.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import jax
import numpy as np

from kvflow_jax.cache.shard_copy import HOST, copy_shards
from kvflow_jax.cache.transfer_plans import Load, Offload

log = logging.getLogger(__name__)

# Copies in flight per direction: the second keeps the link busy while the first is returned.
MAX_ISSUED = 2


class Direction(Enum):
    LOAD = "host to device"
    OFFLOAD = "device to host"


@dataclass(slots=True, eq=False)
class Transfer:
    """Copy of one extent in one direction.

    Attributes:
        job: the load or offload that it is part of.
        data: the source; once the transfer has finished, the copy, or None if there is none.
        nbytes: size of the extent in bytes.
        submitted_s, started_s, finished_s: seconds of the engine's clock; 0 before the event.
        error: why the copy failed; None if it did not.
        is_cancelled: the copy is no longer needed, and is skipped if it has not started.
        is_issued: set once the copy is enqueued on the device, has failed or was skipped.
    """

    direction: Direction
    job: Load | Offload
    data: Any
    nbytes: int
    submitted_s: float
    started_s: float = 0.0
    finished_s: float = 0.0
    error: Exception | None = None
    is_cancelled: bool = False
    is_issued: threading.Event = field(default_factory=threading.Event)


class DeviceTransfers:
    """Copies extents between device memory and ``pinned_host`` memory.

    Args:
        block_sharding: sharding of blocks over the devices.
        bytes_per_s: measured bandwidth of each direction.
        pace_s_per_byte: minimum duration of a copy per byte, to emulate a slower link where host
            and device memory are the same; 0 does not delay copies.
        now: the engine's clock, in seconds.
    """

    def __init__(
        self,
        block_sharding: jax.sharding.Sharding,
        bytes_per_s: Mapping[Direction, float],
        *,
        pace_s_per_byte: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        pace = 1 / pace_s_per_byte if pace_s_per_byte else float("inf")
        self.bytes_per_s = {direction: min(rate, pace) for direction, rate in bytes_per_s.items()}
        self._pace_s_per_byte = pace_s_per_byte
        self._now = now
        self._notify: Callable[[], object] = lambda: None
        self._done: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
        self._is_closing = threading.Event()
        targets = {
            Direction.LOAD: block_sharding,
            Direction.OFFLOAD: block_sharding.with_memory_kind(HOST),
        }
        self._queues = {direction: queue.SimpleQueue[Transfer | None]() for direction in Direction}
        self._threads = [
            threading.Thread(
                target=self._run,
                args=(self._queues[direction], targets[direction]),
                name=f"kvflow-{direction.name.lower()}",
                daemon=True,
            )
            for direction in Direction
        ]
        for thread in self._threads:
            thread.start()

    def listen(self, notify: Callable[[], object]) -> None:
        """Call ``notify`` from a worker thread whenever a transfer has finished."""
        self._notify = notify

    def submit(self, transfer: Transfer) -> None:
        """Queue a transfer behind those of its direction."""
        self._queues[transfer.direction].put(transfer)

    def wait_issued(self, transfer: Transfer, timeout_s: float) -> None:
        """Wait until a transfer is enqueued on the device, ahead of any later step."""
        transfer.is_issued.wait(timeout_s)

    def poll(self) -> list[Transfer]:
        """Return the transfers finished since the last call, copied or failed; never waits."""
        done = []
        while True:
            try:
                done.append(self._done.get_nowait())
            except queue.Empty:
                return done

    def close(self) -> None:
        """Stop the threads. A thread whose copy hangs is abandoned: it is a daemon thread."""
        self._is_closing.set()
        for pending in self._queues.values():
            pending.put(None)
        for thread in self._threads:
            thread.join(timeout=1.0)

    def _run(
        self, pending: queue.SimpleQueue[Transfer | None], target: jax.sharding.Sharding
    ) -> None:
        """Copy the transfers of one direction to ``target``, until None is queued."""
        issued: deque[Transfer] = deque()
        link_free_s = 0.0  # when the previous copy left the link
        is_open = True
        while is_open or issued:
            if issued and (len(issued) == MAX_ISSUED or pending.empty() or not is_open):
                transfer = issued.popleft()
                # Two copies in flight share the link: each counts from the time it had the link
                # to itself.
                transfer.started_s = max(transfer.started_s, link_free_s)
                self._finish(transfer)
                link_free_s = transfer.finished_s
                self._done.put(transfer)
                # Otherwise this frame would keep the last copy alive until the next transfer.
                del transfer
                self._notify()
                continue
            submitted = pending.get()
            if submitted is None or self._is_closing.is_set():
                is_open = False
                continue
            self._issue(submitted, target)
            issued.append(submitted)
            # For the same reason.
            del submitted

    def _issue(self, transfer: Transfer, target: jax.sharding.Sharding) -> None:
        transfer.started_s = self._now()
        if transfer.is_cancelled:
            transfer.data = None
            transfer.is_issued.set()
            return
        try:
            # With may_alias the source itself would be returned where both memories are the same.
            transfer.data = jax.device_put(transfer.data, target, may_alias=False)
        except Exception as error:
            self._fail(transfer, error)
        transfer.is_issued.set()

    def _finish(self, transfer: Transfer) -> None:
        if transfer.error is None:
            try:
                jax.block_until_ready(transfer.data)
            except Exception as error:
                self._fail(transfer, error)
        rest_s = transfer.nbytes * self._pace_s_per_byte + transfer.started_s - self._now()
        if rest_s > 0:
            self._is_closing.wait(rest_s)
        transfer.finished_s = self._now()

    def _fail(self, transfer: Transfer, error: Exception) -> None:
        # No failure is fatal: the blocks can be recomputed, so the engine counts it and goes on.
        log.warning("a copy from %s failed: %s", transfer.direction.value, error)
        # Without the traceback, whose frames keep the transfer and the blocks alive.
        transfer.error, transfer.data = error.with_traceback(None), None


def measure_bandwidth(
    block_sharding: jax.sharding.Sharding, nbytes: int, repeats: int = 3
) -> dict[Direction, float]:
    """Measure the bandwidth of a plain copy of about ``nbytes`` in each direction.

    Args:
        block_sharding: sharding of an array of one axis.
        repeats: copies per direction, of which the fastest counts.

    Returns:
        Bytes per second.

    Raises:
        NotImplementedError: a device has no pinned host memory.
    """
    device: jax.Device = next(iter(block_sharding.addressable_devices))
    kinds = {memory.kind for memory in device.addressable_memories()}
    if HOST not in kinds:
        raise NotImplementedError(f"{device.device_kind} has no pinned host memory")
    num_devices = len(block_sharding.device_set)
    best = dict.fromkeys(Direction, 0.0)
    zeros = np.zeros((nbytes // 4 // num_devices + 1) * num_devices, np.float32)
    data = jax.make_array_from_callback(zeros.shape, block_sharding, lambda index: zeros[index])
    for _ in range(repeats):
        start = time.perf_counter()
        offloaded = jax.block_until_ready(copy_shards(data, to_host=True))
        middle = time.perf_counter()
        jax.block_until_ready(copy_shards(offloaded, to_host=False))
        end = time.perf_counter()
        best[Direction.OFFLOAD] = max(best[Direction.OFFLOAD], data.nbytes / (middle - start))
        best[Direction.LOAD] = max(best[Direction.LOAD], data.nbytes / (end - middle))
    return best
