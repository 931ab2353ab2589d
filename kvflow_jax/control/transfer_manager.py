"""Executes the loads and offloads that the cache has planned, and publishes the completed ones.

    cache.tiers ──loads, offloads──▶ TransferManager ──▶ Runner (reads and writes the pool)
         ▲                                 │
         └──completed, lost extents────────┴──▶ Transfers (copies over the link)

Runs on the engine thread. If a transfer fails or times out, its blocks lose their host copies and
are recomputed. A direction with a transfer that timed out is not used until it completes one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.cache.transfer import Direction, Transfer
from kvflow_jax.cache.transfer_plans import Load, Offload
from kvflow_jax.runtime.interfaces import Clock, Runner, Transfers

log = logging.getLogger(__name__)

# Extents in flight per direction: at least MIN_EXTENTS, to keep the link busy, and few, so that a
# more urgent extent is transferred soon. More if the link would else idle before the engine's next
# iteration, as beside a long step; but each holds a second copy of its blocks on the device, so
# that at most MAX_STAGED_SHARE of the pool is in flight.
MIN_EXTENTS, MAX_STAGED_SHARE = 2, 1 / 8
_QUEUED_ITERATIONS = 1.5  # engine iterations for which the link should have work
_MAX_DECAY = 0.9  # of the longest recent iteration, per iteration
REFUSED_S = 60.0  # pause after the host refused memory, before it is asked again
ISSUE_TIMEOUT_S = 0.05  # longest delay of a step by a transfer thread that is busy
# A transfer times out after this multiple of the expected time of all queued bytes, but not before
# the minimum.
_MIN_TIMEOUT_S, _TIMEOUT_FACTOR = 5.0, 20.0
_EWMA_WEIGHT = 0.2  # of the newest transfer in a direction's bandwidth


@dataclass(slots=True)
class LinkStats:
    """Statistics of one direction; all but ``bytes_per_s`` are counters.

    Attributes:
        bytes_per_s: recent bandwidth while busy.
        num_bytes: bytes transferred.
        busy_s: seconds spent on transfers.
        num_failed: transfers that failed or timed out.
    """

    bytes_per_s: float
    num_bytes: int = 0
    busy_s: float = 0.0
    num_failed: int = 0


class Finished(NamedTuple):
    """What has become of the transfers in flight since the last call.

    Attributes:
        transfers: those that are done or have failed.
        failed_blocks: i32[n], blocks whose loads have failed or depend on a failed load; None if
            all succeeded. The caller must release the leases of these blocks and then call
            ``drop_failed``, before it uses the cache in another way.
    """

    transfers: list[Transfer]
    failed_blocks: np.ndarray | None


class TransferManager:
    """Transfers the blocks of one cache between device and host.

    Args:
        block_bytes: size of a block.

    Attributes:
        links: statistics of each direction; their bandwidths start as measured by ``transfers``.
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
        self.links = {
            direction: LinkStats(transfers.bytes_per_s[direction]) for direction in Direction
        }
        self._tiers, self._num_pages = cache.tiers, cache.num_pages
        self._runner = runner
        self._transfers = transfers
        self._clock = clock
        self._block_bytes = block_bytes
        self._in_flight: dict[Transfer, float] = {}  # transfer -> deadline, seconds of the clock
        self._bytes_queued = dict.fromkeys(Direction, 0)
        self._stuck: set[Direction] = set()
        self._refused_until_s = 0.0
        self._iteration_s = 0.0  # decaying maximum of the engine's iterations
        self._last_iteration_s: float | None = None
        self._refused: list[Transfer] = []  # which could not be submitted
        self._failed: list[Load] = []  # loads whose host copies are lost
        self._void: list[Load] = []  # completed loads that may continue a failed one

    @property
    def has_in_flight(self) -> bool:
        """Whether a transfer has not completed yet."""
        return bool(self._in_flight)

    @property
    def has_plans(self) -> bool:
        """Whether ``dispatch`` has something to do."""
        return bool(self._tiers.planned_loads or self._tiers.planned_offloads)

    def is_usable(self, direction: Direction) -> bool:
        """Return whether transfers may be planned: no timeout, and host memory not refused."""
        if direction is Direction.OFFLOAD and self._clock.now() < self._refused_until_s:
            return False
        return direction not in self._stuck

    def set_offload_budget(self) -> None:
        """Set how many blocks the cache may offload in this step."""
        max_blocks = max(2 * MIN_EXTENTS * self._tiers.max_extent_blocks, self._max_staged)
        num_queued = self._bytes_queued[Direction.OFFLOAD] // self._block_bytes
        is_usable = self.is_usable(Direction.OFFLOAD)
        self._tiers.set_offload_budget(max_blocks - num_queued if is_usable else 0)

    def is_saturated(self, direction: Direction, planned: Sequence[Load | Offload]) -> bool:
        """Return whether a direction has work until the engine's next iteration.

        Args:
            planned: jobs that are still to be dispatched.
        """
        num_in_flight = sum(transfer.direction is direction for transfer in self._in_flight)
        if num_in_flight + len(planned) < MIN_EXTENTS:
            return False
        num_planned = sum(len(job.extent.blocks) for job in planned)
        num_blocks = self._bytes_queued[direction] // self._block_bytes + num_planned
        return (
            self.estimate_s(direction, num_planned) >= _QUEUED_ITERATIONS * self._iteration_s
            or num_blocks >= self._max_staged
        )

    @property
    def _max_staged(self) -> int:
        """Blocks that may be in flight in a direction, beyond ``MIN_EXTENTS`` extents."""
        return int(self._num_pages * MAX_STAGED_SHARE)

    def _note_iteration(self) -> None:
        now = self._clock.now()
        if self._last_iteration_s is not None:
            self._iteration_s = max(now - self._last_iteration_s, _MAX_DECAY * self._iteration_s)
        self._last_iteration_s = now

    def estimate_s(self, direction: Direction, num_blocks: int) -> float:
        """Return the seconds until blocks have been transferred, behind those in flight."""
        num_bytes = self._bytes_queued[direction] + num_blocks * self._block_bytes
        return num_bytes / self.links[direction].bytes_per_s

    def reset(self, cache: PrefixCache) -> None:
        """Start over with another cache; the results of transfers in flight are dropped."""
        self._tiers, self._num_pages = cache.tiers, cache.num_pages
        self._in_flight.clear()
        self._bytes_queued = dict.fromkeys(Direction, 0)
        self._refused, self._failed, self._void = [], [], []

    def publish_finished(self) -> Finished:
        """Publish the transfers that have finished, and time out those past their deadlines."""
        self._note_iteration()
        finished: list[Transfer] = []
        failed: list[Load] = []
        refused, self._refused = self._refused, []
        for transfer in [*refused, *self._transfers.poll()]:
            self._stuck.discard(transfer.direction)
            if self._in_flight.pop(transfer, None) is None:
                continue  # it belongs to an earlier cache, or has timed out
            finished.append(transfer)
            self._note(transfer)
            if isinstance(transfer.job, Offload):
                self._complete_offload(transfer, transfer.job)
            elif transfer.error is not None:
                failed.append(transfer.job)
            elif failed:
                self._void.append(transfer.job)
            else:
                self._complete_load(transfer, transfer.job)
        failed += self._time_out()
        self._failed = failed
        return Finished(finished, self._tiers.loading_blocks() if failed else None)

    def drop_failed(self) -> None:
        """Drop the host copies that could not be read. No lease may hold their blocks."""
        in_flight = dict.fromkeys(
            transfer.job for transfer in self._in_flight if isinstance(transfer.job, Load)
        )
        self._tiers.fail_loads(self._failed, [*in_flight, *self._void])
        self._failed, self._void = [], []

    def dispatch(self) -> None:
        """Start the planned transfers. Call it before the step that may reuse their pages."""
        plans = self._tiers.drain_plans()
        for offload in plans.offloads:
            read = partial(self._runner.read_blocks, offload.pages)
            self._submit(Direction.OFFLOAD, offload, read, len(offload.pages))
        was_idle = not self._bytes_queued[Direction.LOAD]
        submitted = [
            self._submit(Direction.LOAD, load, partial(_data_of, load), len(load.extent.blocks))
            for load in plans.loads
        ]
        if submitted and was_idle and submitted[0].error is None:
            # On a GPU, a copy into a fresh buffer waits for the steps dispatched before it: enqueue
            # it before the next step. The copies behind it are enqueued while it is in flight.
            self._transfers.wait_issued(submitted[0], ISSUE_TIMEOUT_S)

    def _time_out(self) -> list[Load]:
        """Drop the transfers that are past their deadlines; return the loads among them."""
        now, loads = self._clock.now(), []
        for transfer, deadline_s in list(self._in_flight.items()):
            if now > deadline_s:
                log.warning("a transfer from %s has timed out", transfer.direction.value)
                self._stuck.add(transfer.direction)
                self._drop(transfer)
                if isinstance(transfer.job, Load):
                    loads.append(transfer.job)
                else:
                    self._tiers.fail_offload(transfer.job)
        return loads

    def _submit(
        self, direction: Direction, job: Load | Offload, read: Callable[[], object], num_blocks: int
    ) -> Transfer:
        """Submit the transfer of what ``read`` returns; if that is refused, it has failed."""
        now = self._clock.now()
        transfer = Transfer(direction, job, None, num_blocks * self._block_bytes, submitted_s=now)
        self._bytes_queued[direction] += transfer.nbytes
        expected_s = self._bytes_queued[direction] / self.links[direction].bytes_per_s
        self._in_flight[transfer] = now + max(_MIN_TIMEOUT_S, _TIMEOUT_FACTOR * expected_s)
        try:
            transfer.data = read()
            self._transfers.submit(transfer)
        except Exception as error:
            log.exception("a transfer from %s could not be started", direction.value)
            transfer.error = error
            self._refused.append(transfer)
        return transfer

    def _note(self, transfer: Transfer) -> None:
        self._bytes_queued[transfer.direction] -= transfer.nbytes
        link = self.links[transfer.direction]
        if transfer.error is not None:
            link.num_failed += 1
            return
        duration_s = transfer.finished_s - transfer.started_s
        link.num_bytes += transfer.nbytes
        link.busy_s += duration_s
        if duration_s > 0:
            link.bytes_per_s += _EWMA_WEIGHT * (transfer.nbytes / duration_s - link.bytes_per_s)

    def _drop(self, transfer: Transfer) -> None:
        del self._in_flight[transfer]
        transfer.is_cancelled = True
        self._bytes_queued[transfer.direction] -= transfer.nbytes
        self.links[transfer.direction].num_failed += 1

    def _complete_load(self, transfer: Transfer, load: Load) -> None:
        indices, pages = self._tiers.complete_load(load)
        if len(indices):
            self._runner.write_blocks(transfer.data, indices, pages)

    def _complete_offload(self, transfer: Transfer, offload: Offload) -> None:
        if transfer.error is None:
            self._tiers.complete_offload(offload, transfer.data)
            return
        self._tiers.fail_offload(offload)
        self._refused_until_s = self._clock.now() + REFUSED_S


def _data_of(load: Load) -> object:
    return load.extent.data
