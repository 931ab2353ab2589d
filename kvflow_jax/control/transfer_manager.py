"""Carries out what the cache has decided to move, and tells it what has landed.

    cache.residency ──loads, offloads──▶ TransferManager ──▶ Runner (out of and into the pool)
          ▲                               │
          └──landed, saved, lost──────────┴──▶ Transfers (over the link)

Runs on the engine's thread. A transfer that fails, or does not end, costs its blocks their host
copies, which are then computed again; a link that hangs is left alone until it answers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvflow_jax.cache.blocks import DeviceState
from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.cache.residency import Load, Offload
from kvflow_jax.cache.transfer import Direction, Transfer
from kvflow_jax.runtime.interfaces import Clock, Runner, Transfers

log = logging.getLogger(__name__)

# Extents under direction in a direction: at least so many, to keep the link busy, and so few, that what
# turns out to be more urgent is soon next. More where the link would else fall idle before the
# engine's next turn, as beside a long step; but each is a second copy of its blocks on the device.
MIN_EXTENTS, MAX_STAGED_SHARE = 2, 1 / 8
_SLACK = 1.5  # turns for which the link has work
_FADING = 0.9  # of the longest turn of late, a turn
REFUSED_S = 60.0  # a host that has refused memory is asked again after so long
ISSUE_TIMEOUT_S = 0.05  # a step is not held up longer than this by a lane that is busy
# A copy that takes this long beyond all that were queued before it will not come.
_MIN_TIMEOUT_S, _TIMEOUT_FACTOR = 5.0, 20.0
_FRESH = 0.2  # weight of the newest copy in the estimate of a direction's bandwidth


@dataclass(slots=True)
class LinkStats:
    """Of one direction; counters only grow.

    Attributes:
        bytes_per_s: of late, while it copied.
        busy_s: in which it copied.
    """

    bytes_per_s: float
    num_bytes: int = 0
    busy_s: float = 0.0
    num_failed: int = 0


class TransferManager:
    """Moves blocks for one cache.

    Args:
        block_bytes: size of a block.
    """

    def __init__(
        self,
        cache: PrefixCache,
        runner: Runner,
        transfers: Transfers,
        clock: Clock,
        *,
        block_bytes: int,
    ) -> None:
        # As measured at the start, until copies show otherwise.
        self.links = {
            direction: LinkStats(transfers.bytes_per_s[direction]) for direction in Direction
        }
        self.finished: list[Transfer] = []  # since somebody asked, for a trace
        self._cache = cache
        self._runner = runner
        self._transfers = transfers
        self._clock = clock
        self._block_bytes = block_bytes
        self._in_flight: dict[Transfer, float] = {}  # to the time by which it must have landed
        self._bytes_queued = dict.fromkeys(Direction, 0)
        self._stuck: set[Direction] = set()
        self._refused_until_s = 0.0
        self._iteration_s = 0.0  # the longest between two turns of the engine, of late
        self._last_iteration_s: float | None = None
        self._failed: list[Load] = []  # their copies are lost
        self._void: list[Load] = []  # came behind those

    @property
    def is_moving(self) -> bool:
        """Whether something is still to land."""
        return bool(self._in_flight)

    @property
    def has_plans(self) -> bool:
        """Whether something is to be dispatched."""
        residency = self._cache.residency
        return bool(residency.loads or residency.offloads)

    def is_usable(self, direction: Direction) -> bool:
        """Whether a direction answers. While it does not, nothing is to be asked of it."""
        if direction is Direction.OFFLOAD and self._clock.now() < self._refused_until_s:
            return False
        return direction not in self._stuck

    def limit_offloads(self) -> None:
        """Tell the cache how much may be copied to the host in this step."""
        residency = self._cache.residency
        most = max(2 * MIN_EXTENTS * residency.host.longest, self._most_staged)
        num_saving = self._bytes_queued[Direction.OFFLOAD] // self._block_bytes
        residency.offload_budget = most - num_saving if self.is_usable(Direction.OFFLOAD) else 0

    def has_work(self, direction: Direction, planned: Sequence[Load | Offload]) -> bool:
        """Whether a direction is busy until the engine's next turn, with what is planned for it."""
        num_in_flight = sum(transfer.direction is direction for transfer in self._in_flight)
        if num_in_flight + len(planned) < MIN_EXTENTS:
            return False
        num_planned = sum(len(job.extent.blocks) for job in planned)
        num_blocks = self._bytes_queued[direction] // self._block_bytes + num_planned
        return (
            self.seconds(direction, num_planned) >= _SLACK * self._iteration_s
            or num_blocks >= self._most_staged
        )

    @property
    def _most_staged(self) -> int:
        """Blocks that may be on their way at once in a direction, beyond a few extents."""
        return int(self._cache.table.num_pages * MAX_STAGED_SHARE)

    def _note_iteration(self) -> None:
        now = self._clock.now()
        if self._last_iteration_s is not None:
            self._iteration_s = max(now - self._last_iteration_s, _FADING * self._iteration_s)
        self._last_iteration_s = now

    def seconds(self, direction: Direction, num_blocks: int) -> float:
        """How long so many blocks take behind what is under way already."""
        num_bytes = self._bytes_queued[direction] + num_blocks * self._block_bytes
        return num_bytes / self.links[direction].bytes_per_s

    def reset(self, cache: PrefixCache) -> None:
        """Start over with another cache; what is under direction is for nobody."""
        self._cache = cache
        self._in_flight.clear()
        self._bytes_queued = dict.fromkeys(Direction, 0)
        self._failed, self._void = [], []

    def settle(self) -> np.ndarray | None:
        """Publish what has landed.

        Returns:
            None where all is well; else i32[n], blocks that will not come. Requests that lease
            them must give them up, and then ``drop_failed`` must be called, before anything else
            is asked of the cache.
        """
        self._note_iteration()
        failed: list[Load] = []
        for transfer in self._transfers.poll():
            self._stuck.discard(transfer.direction)
            if self._in_flight.pop(transfer, None) is None:
                continue  # its cache is no more, or it was given up
            self._note(transfer)
            if isinstance(transfer.job, Offload):
                self._end_offload(transfer, transfer.job)
            elif transfer.error is not None:
                failed.append(transfer.job)
            elif failed:
                self._void.append(transfer.job)  # it may continue what did not come
            else:
                self._complete_load(transfer, transfer.job)
        now = self._clock.now()
        for transfer, deadline_s in list(self._in_flight.items()):
            if now > deadline_s:
                log.warning("a copy from %s does not end", transfer.direction.value)
                self._stuck.add(transfer.direction)
                self._drop(transfer)
                if isinstance(transfer.job, Load):
                    failed.append(transfer.job)
                else:
                    self._cache.residency.lost(transfer.job.extent)
        self._failed = failed
        if not failed:
            return None
        # Loads are of paths: what continues a block that did not come is of no use either.
        loading = self._cache.table.device_state == DeviceState.LOADING
        return np.flatnonzero(loading).astype(np.int32)

    def drop_failed(self) -> None:
        """Forget the host copies that could not be read, no lease holding their blocks now."""
        residency = self._cache.residency
        loads = dict.fromkeys(
            transfer.job for transfer in self._in_flight if isinstance(transfer.job, Load)
        )
        pending = [*loads, *self._void, *self._failed]
        # A load is cancelled from its end, once what continues it is: in as many rounds as needed.
        while sum(residency.cancel(load) for load in reversed(pending)):
            pass
        for load in self._failed:
            residency.lost(load.extent)
        self._failed, self._void = [], []

    def dispatch(self) -> None:
        """Begin what the cache has planned. Call before the step that may reuse its slots."""
        residency = self._cache.residency
        offloads, residency.offloads = residency.offloads, []
        for offload in offloads:
            staged = self._runner.read_blocks(offload.pages)
            self._submit(Direction.OFFLOAD, offload, staged, len(offload.pages))
        loads, residency.loads = residency.loads, []
        was_idle = not self._bytes_queued[Direction.LOAD]
        first = None
        for load in loads:
            if residency.is_wanted(load):
                transfer = self._submit(
                    Direction.LOAD, load, load.extent.data, len(load.extent.blocks)
                )
                first = first or transfer
        if first is not None and was_idle:
            # On a GPU a copy into fresh memory waits for the steps dispatched before it was: let
            # it be known to the device first. Those behind it are issued while it is under way.
            self._transfers.wait_issued(first, ISSUE_TIMEOUT_S)

    def _submit(
        self, direction: Direction, job: Load | Offload, data: object, num: int
    ) -> Transfer:
        now = self._clock.now()
        transfer = Transfer(direction, job, data, num * self._block_bytes, submitted_s=now)
        self._bytes_queued[direction] += transfer.nbytes
        expected_s = self._bytes_queued[direction] / self.links[direction].bytes_per_s
        self._in_flight[transfer] = now + max(_MIN_TIMEOUT_S, _TIMEOUT_FACTOR * expected_s)
        self._transfers.submit(transfer)
        return transfer

    def _note(self, transfer: Transfer) -> None:
        self._bytes_queued[transfer.direction] -= transfer.nbytes
        self.finished.append(transfer)
        link = self.links[transfer.direction]
        if transfer.error is not None:
            link.num_failed += 1
            return
        took_s = transfer.finished_s - transfer.started_s
        link.num_bytes += transfer.nbytes
        link.busy_s += took_s
        if took_s > 0:
            link.bytes_per_s += _FRESH * (transfer.nbytes / took_s - link.bytes_per_s)

    def _drop(self, transfer: Transfer) -> None:
        del self._in_flight[transfer]
        transfer.is_cancelled = True
        self._bytes_queued[transfer.direction] -= transfer.nbytes
        self.links[transfer.direction].num_failed += 1

    def _complete_load(self, transfer: Transfer, load: Load) -> None:
        indices, pages = self._cache.residency.complete(load)
        if len(indices):
            self._runner.write_blocks(transfer.data, indices, pages)

    def _end_offload(self, transfer: Transfer, offload: Offload) -> None:
        residency = self._cache.residency
        if transfer.error is None:
            residency.complete_offload(offload.extent, transfer.data)
            return
        residency.lost(offload.extent)
        self._refused_until_s = self._clock.now() + REFUSED_S
