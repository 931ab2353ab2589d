"""Copies of extents between host and device, on threads of their own.

    engine thread                         lane thread, one a direction
    ─────────────                         ────────────────────────────
    submit(transfer) ───────queue───────▶ device_put into a fresh buffer ──▶ "issued"
    wait_issued (bounded)                 wait until it is there, pace it
    poll() ◀──────────────done─────────── hand it over, notify

A lane never sees the pool: what it brings is written into the pool by the engine, what it takes
away was read out of the pool by the engine. It has few extents under way at a time, so that what
is more urgent does not wait for long.
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

from kvflow_jax.cache.residency import Load, Offload
from kvflow_jax.cache.shard_copy import HOST, copy_shards

log = logging.getLogger(__name__)

MAX_ISSUED = 2  # a second copy keeps the link busy while the first is handed over


class Direction(Enum):
    LOAD = "host to device"
    OFFLOAD = "device to host"


@dataclass(slots=True, eq=False)
class Transfer:
    """One extent on its way.

    Attributes:
        job: what it is for.
        data: what to copy; once it is done, the copy.
        submitted_s, started_s, finished_s: of the engine's clock; 0 until it has happened.
        error: why there is no copy.
        is_cancelled: nobody waits for it; if it has not begun, it need not.
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
    """Moves extents between the memory of devices and ``pinned_host``.

    Args:
        here: how blocks lie on the device, or on several.
        bytes_per_s: of each direction, measured.
        pace_s_per_byte: what a copy takes at least, where host and device memory are the same and
            a slower link is to be emulated; 0 copies as fast as it goes.
        now: the engine's clock.
    """

    def __init__(
        self,
        here: jax.sharding.Sharding,
        bytes_per_s: Mapping[Direction, float],
        *,
        pace_s_per_byte: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        pace = 1 / pace_s_per_byte if pace_s_per_byte else float("inf")
        self.bytes_per_s = {way: min(rate, pace) for way, rate in bytes_per_s.items()}
        self._pace_s_per_byte = pace_s_per_byte
        self._now = now
        self._notify: Callable[[], object] = lambda: None
        self._done: queue.SimpleQueue[Transfer] = queue.SimpleQueue()
        self._is_closing = threading.Event()
        targets = {
            Direction.LOAD: here,
            Direction.OFFLOAD: here.with_memory_kind(HOST),
        }
        self._lanes = {way: queue.SimpleQueue[Transfer | None]() for way in Direction}
        self._threads = [
            threading.Thread(
                target=self._run,
                args=(self._lanes[way], targets[way]),
                name=f"kvflow-{way.name.lower()}",
                daemon=True,
            )
            for way in Direction
        ]
        for thread in self._threads:
            thread.start()

    def listen(self, notify: Callable[[], object]) -> None:
        """Call ``notify`` from a lane's thread whenever a transfer is done."""
        self._notify = notify

    def submit(self, transfer: Transfer) -> None:
        """Queue a transfer behind those of its direction."""
        self._lanes[transfer.direction].put(transfer)

    def wait_issued(self, transfer: Transfer, timeout_s: float) -> None:
        """Wait until the device knows of a transfer, which then waits for no later step."""
        transfer.is_issued.wait(timeout_s)

    def poll(self) -> list[Transfer]:
        """Transfers done since the last call, copied or failed; never waits."""
        done = []
        while True:
            try:
                done.append(self._done.get_nowait())
            except queue.Empty:
                return done

    def close(self) -> None:
        """Stop the threads. A copy that never ends is left to the end of the process."""
        self._is_closing.set()
        for lane in self._lanes.values():
            lane.put(None)
        for thread in self._threads:
            thread.join(timeout=1.0)

    def _run(self, lane: queue.SimpleQueue[Transfer | None], target: jax.sharding.Sharding) -> None:
        issued: deque[Transfer] = deque()
        free_s = 0.0  # when the copy before has left the link
        is_open = True
        while is_open or issued:
            if issued and (len(issued) == MAX_ISSUED or lane.empty() or not is_open):
                transfer = issued.popleft()
                # Two under way share the link: each counts from when it had it to itself.
                transfer.started_s = max(transfer.started_s, free_s)
                self._finish(transfer)
                free_s = transfer.finished_s
                self._done.put(transfer)
                del transfer  # or the last copy would stay until the next
                self._notify()
                continue
            following = lane.get()
            if following is None or self._is_closing.is_set():
                is_open = False
                continue
            self._issue(following, target)
            issued.append(following)

    def _issue(self, transfer: Transfer, target: jax.sharding.Sharding) -> None:
        transfer.started_s = self._now()
        if transfer.is_cancelled:
            transfer.data = None
            transfer.is_issued.set()
            return
        try:
            # may_alias would hand out the source itself where both memories are one.
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
        # Whatever it is, the blocks can be computed again: the engine counts it and goes on.
        log.warning("a copy from %s failed: %s", transfer.direction.value, error)
        # Without its traceback, whose frames hold the transfer and the blocks.
        transfer.error, transfer.data = error.with_traceback(None), None


def measure_bandwidth(
    here: jax.sharding.Sharding, nbytes: int, repeats: int = 3
) -> dict[Direction, float]:
    """Bytes per second of one plain copy of about ``nbytes`` each way, the best of some.

    Args:
        here: of an array of one axis.

    Raises:
        NotImplementedError: a device has no pinned host memory.
    """
    device: jax.Device = next(iter(here.addressable_devices))
    kinds = {memory.kind for memory in device.addressable_memories()}
    if HOST not in kinds:
        raise NotImplementedError(f"{device.device_kind} has no pinned host memory")
    num = len(here.device_set)
    best = dict.fromkeys(Direction, 0.0)
    zeros = np.zeros((nbytes // 4 // num + 1) * num, np.float32)
    data = jax.make_array_from_callback(zeros.shape, here, lambda part: zeros[part])
    for _ in range(repeats):
        start = time.perf_counter()
        saved = jax.block_until_ready(copy_shards(data, to_host=True))
        middle = time.perf_counter()
        jax.block_until_ready(copy_shards(saved, to_host=False))
        end = time.perf_counter()
        best[Direction.OFFLOAD] = max(best[Direction.OFFLOAD], data.nbytes / (middle - start))
        best[Direction.LOAD] = max(best[Direction.LOAD], data.nbytes / (end - middle))
    return best
