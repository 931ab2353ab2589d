"""Admission control: time-slices workflow runs while the cache thrashes.

If the working sets of concurrent runs exceed the cache, each run finds that the others have evicted
its KV, and all of them recompute it: the cache thrashes, whatever its order of eviction. As an
operating system does (Denning 1968, working sets), admission control then throttles whole runs. The
others go on without recomputation until they end, idle for long, or have used up their time slice.

    new call ──▶ queued ──within the limit──▶ active ──▶ ended
                   ▲                            │
                   └──new call──── throttled ◀──┘ idle for long; over the limit; end of its slice

The limit on the working sets of active runs is adaptive, as in congestion control of a network: it
shrinks while much time goes into recomputation, and grows while little does. A throttled run's
readers count more steps-to-execution, so that their blocks are evicted first. Calls that have
started go on; only new calls wait. Decoding takes longer when fewer requests share a step, so runs
are throttled only while the recomputation that this avoids costs more.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from kvflow_jax.control.admission.working_sets import WorkingSets
from kvflow_jax.control.idle_time_quantile import IdleTimeQuantile
from kvflow_jax.control.readers import Reader, RunKey
from kvflow_jax.errors import IntegrityError

# Shares of the time spent recomputing evicted KV: above the first the limit shrinks, below the
# second it grows, by a factor of exp(LIMIT_RATE) per second.
HIGH_WATERMARK, LOW_WATERMARK = 0.2, 0.05
LIMIT_RATE = 0.02
AVERAGING_S = 60.0  # time constant of the averages
# Share of the time that smaller decode batches may cost beyond what throttling saves: active runs
# end sooner, so that all runs wait less on average for the same throughput.
DECODE_TOLERANCE = 0.25
MIN_LIMIT = 0.8  # of the cache; smaller working sets are never throttled
SLICE_FACTOR = 32  # time slice, in multiples of the time to recompute the queued run's blocks
MIN_SLICE_S = 10.0
_UPDATE_EVERY_S = 1.0
_MAX_SAMPLED = 16  # queued runs from which the size of all queued runs is extrapolated


class _Claim(NamedTuple):
    """By what a run is compared with others: first of all tenants, then of its own."""

    rank: int
    tenant: str
    priority: int


class AdmissionControl:
    """Decides which runs are active.

    Runs and readers (agents and conversations that read a prefix again) are named by the caller.
    Hashes are those of ``block_hashes``.

    Args:
        num_blocks: capacity of the cache, of all tiers worth reading from.
        compute_s: seconds to compute a number of blocks. Throttled runs are charged with that, as
            their blocks are evicted from every tier: if a tier had room, they would be active.
        decode_s: total seconds so far of steps that computed no prompt tokens.
        throttle: called with each run that becomes throttled.
        resume: called with each run that becomes active.
    """

    def __init__(
        self,
        num_blocks: Callable[[], int],
        compute_s: Callable[[int], float],
        decode_s: Callable[[], float],
        throttle: Callable[[RunKey], object],
        resume: Callable[[RunKey], object],
    ) -> None:
        self._num_blocks, self._compute_s = num_blocks, compute_s
        self._decode_s = decode_s
        self._throttle, self._resume = throttle, resume
        self._working_sets = WorkingSets()
        self._readers: dict[RunKey, set[Reader]] = {}  # run -> its readers
        self._num_calls: Counter[RunKey] = Counter()  # run -> its unfinished calls
        # Run -> time at which it became active, queued (throttled, with calls) or idle (without
        # calls); the earliest first.
        self._active: OrderedDict[RunKey, float] = OrderedDict()
        self._queue: OrderedDict[RunKey, float] = OrderedDict()
        self._idle: OrderedDict[RunKey, float] = OrderedDict()
        self._claims: dict[RunKey, _Claim] = {}  # run -> that of its last call
        self._limit = math.inf  # most blocks that active runs may have
        # Share of the time spent recomputing evicted KV, moving average.
        self._recompute_share = 0.0
        self._recompute_s = 0.0  # time spent recomputing since the last update
        self._updated_s = -math.inf
        self._idle_times = IdleTimeQuantile()
        # ``_recompute_share`` when runs were first throttled.
        self._recompute_share_before = 0.0
        self._decode_share = 0.0  # share of the time spent decoding, moving average
        self._last_decode_s = 0.0  # ``decode_s`` at the last update

    @property
    def num_queued(self) -> int:
        """Throttled runs with calls."""
        return len(self._queue)

    @property
    def num_active_blocks(self) -> int:
        """Distinct blocks in the working sets of active runs."""
        return self._working_sets.num_active_blocks

    def is_throttled(self, run: RunKey) -> bool:
        """Return whether new calls of a run wait."""
        return run in self._queue

    # Working sets.

    def set_working_set(self, reader: Reader, hashes: np.ndarray) -> None:
        """Set the blocks that a reader reads again, i64[n]."""
        self._working_sets.set(reader, hashes)

    def remove_working_set(self, reader: Reader) -> None:
        """Forget the blocks that a reader reads."""
        self._working_sets.remove(reader)

    def on_prefill_done(
        self, hashes: np.ndarray, num_cached: int, readers: Iterable[Reader]
    ) -> None:
        """Account for the recomputation in a prefill.

        Blocks that a reader of the prompt had read before count, unless its run was throttled
        since.

        Args:
            hashes: i64[n], of the prompt.
            num_cached: leading blocks that were cached.
        """
        num_recomputed = self._working_sets.num_recomputed(hashes, num_cached, readers)
        self._recompute_s += self._compute_s(num_recomputed)

    def on_cache_reset(self) -> None:
        """Account for an emptied cache: what readers compute next is not due to thrashing."""
        self._working_sets.mark_all_cold()

    # The life of a run.

    def on_call_added(
        self,
        run: RunKey,
        readers: Iterable[Reader],
        now: float,
        *,
        tenant: str = "",
        priority: int = 0,
        rank: int = 0,
    ) -> None:
        """Queue a new call of a run, and admit the run if the limit permits.

        Args:
            readers: readers that the run uses, now or later.
            tenant: the tenants with the fewest active runs are admitted first.
            priority: runs of a tenant of a higher one are admitted first, and not after runs of a
                lower one.
            rank: as ``priority``, between all tenants.
        """
        idle_since_s = self._idle.pop(run, None)
        if idle_since_s is not None:
            self._idle_times.observe(now - idle_since_s)
        self._num_calls[run] += 1
        self._claims[run] = _Claim(rank, tenant, priority)
        self._readers.setdefault(run, set())
        self.add_readers(run, readers)
        if run in self._active:
            return
        self._queue.setdefault(run, now)
        if self._num_additional(run):
            self._admit_queued(now)
        else:
            self._activate(run, now)  # it takes no room from the runs in front of it

    def add_readers(self, run: RunKey, readers: Iterable[Reader]) -> None:
        """Add readers that a run uses; does nothing for a run that has ended."""
        known = self._readers.get(run)
        if known is None:
            return
        new = set(readers) - known
        known |= new
        if run in self._active:
            self._working_sets.acquire(new)

    def remove_reader(self, run: RunKey, reader: Reader) -> None:
        """Remove a reader that a run no longer uses; does nothing for one it did not use."""
        if reader in self._readers.get(run, ()):
            self._readers[run].remove(reader)
            if run in self._active:
                self._working_sets.release([reader])

    def on_call_finished(self, run: RunKey, now: float) -> None:
        """Record the end of a call of a run."""
        self._num_calls[run] -= 1
        if self._num_calls[run] > 0:
            return
        del self._num_calls[run]
        self._queue.pop(run, None)  # all calls that waited were aborted
        if run in self._readers:  # else the run has ended
            self._idle[run] = now

    def end_run(self, run: RunKey) -> None:
        """Forget a run."""
        self._queue.pop(run, None)
        self._idle.pop(run, None)
        self._claims.pop(run, None)
        readers = self._readers.pop(run, set())
        if self._active.pop(run, None) is not None:
            self._working_sets.release(readers)

    def update(self, now: float) -> None:
        """Adapt the limit, and throttle and resume runs; at most every ``_UPDATE_EVERY_S``."""
        if now - self._updated_s < _UPDATE_EVERY_S:
            return
        self._adapt_limit(now)
        while self.num_active_blocks > self._limit:
            victim = self._longest_idle(now) or self._newest()
            if victim is None:
                break
            self._deactivate(victim)
        self._admit_queued(now)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless working sets are counted for exactly the active runs."""
        self._working_sets.check_integrity(
            Counter(reader for run in self._active for reader in self._readers[run])
        )
        if (
            self._queue.keys() & self._active.keys()
            or not self._queue.keys() <= self._num_calls.keys()
        ):
            raise IntegrityError("a queued run is active, or has no calls")

    def _adapt_limit(self, now: float) -> None:
        """Shrink the limit while the cache thrashes, and let it grow while little is recomputed."""
        elapsed_s = min(now - self._updated_s, AVERAGING_S)
        weight = 1.0 - math.exp(-elapsed_s / AVERAGING_S)
        self._recompute_share += weight * (self._recompute_s / elapsed_s - self._recompute_share)
        self._updated_s, self._recompute_s = now, 0.0
        decode_s = self._decode_s()
        decode_share = (decode_s - self._last_decode_s) / elapsed_s
        self._decode_share += weight * (decode_share - self._decode_share)
        self._last_decode_s = decode_s
        if self._queue and not self._pays_off():
            self._limit = math.inf
        elif self._recompute_share > HIGH_WATERMARK:
            min_limit = MIN_LIMIT * self._num_blocks()
            if not self._queue:
                self._recompute_share_before = self._recompute_share
                num_excess = self.num_active_blocks - min_limit
                if self._slowdown(num_excess, min_limit) > self._recompute_share:
                    return
            limit = min(self._limit, self.num_active_blocks) * math.exp(-LIMIT_RATE * elapsed_s)
            self._limit = max(limit, min_limit)
        elif self._recompute_share < LOW_WATERMARK:
            self._limit *= math.exp(LIMIT_RATE * elapsed_s)

    def _pays_off(self) -> bool:
        """Return whether throttling saves more recomputation than it costs in decoding."""
        sampled = list(islice(self._queue, _MAX_SAMPLED))
        num_queued = sum(map(self._num_additional, sampled)) / len(sampled) * len(self._queue)
        saved = self._recompute_share_before - self._recompute_share
        slowdown = self._slowdown(num_queued, self.num_active_blocks + num_queued)
        return saved > slowdown - DECODE_TOLERANCE

    def _slowdown(self, num_queued: float, num_others: float) -> float:
        """Return the share of the time that decoding without the queued runs costs.

        A decode step takes about as long with few rows as with many, so smaller batches need
        proportionally more steps.

        Args:
            num_queued: blocks in the working sets of queued runs.
            num_others: blocks that they are compared with.
        """
        return self._decode_share * max(0.0, num_queued) / max(1.0, num_others)

    def _admit_queued(self, now: float) -> None:
        """Admit queued runs within the limit, by claim, then in the order they were queued.

        A run that does not fit stops the runs behind it, so that it is not starved.
        """
        while self._queue:
            run = max(self._queue, key=self._order_of())  # the first of the highest
            if not self._make_room(run, now):
                return
            self._activate(run, now)

    def _make_room(self, run: RunKey, now: float) -> bool:
        """Throttle active runs that give way to a queued one.

        Returns:
            Whether the run now fits; if not, no run was throttled.
        """
        released: list[tuple[RunKey, float]] = []
        while (
            self._active
            and (num_blocks := self._num_additional(run))
            and self.num_active_blocks + num_blocks > self._limit
        ):
            victim = self._longest_idle(now) or self._preemptible(run, num_blocks, now)
            if victim is None:
                for other, since_s in released:
                    self._active[other] = since_s
                    self._working_sets.acquire(self._readers[other], have_read=True)
                self._active = OrderedDict(sorted(self._active.items(), key=itemgetter(1)))
                return False
            released.append((victim, self._active.pop(victim)))
            self._working_sets.release(self._readers[victim])
        for victim, _ in released:
            self._throttle(victim)
        return True

    def _activate(self, run: RunKey, now: float) -> None:
        del self._queue[run]
        self._active[run] = now
        self._working_sets.acquire(self._readers[run])
        self._resume(run)

    def _deactivate(self, run: RunKey) -> None:
        del self._active[run]
        self._working_sets.release(self._readers[run])
        self._throttle(run)

    def _longest_idle(self, now: float) -> RunKey | None:
        """Return the active run that idles longest, if it idles for long; else None.

        Long means longer than most idle times, plus the time to recompute the run's blocks: to keep
        a run active for that long costs at most twice the optimum (Continuum, arXiv 2511.02230).
        """
        for run, since_s in self._idle.items():
            if run in self._active:
                num_blocks = self._working_sets.num_blocks(self._readers[run])
                long_s = self._idle_times.long_s + self._compute_s(num_blocks)
                return run if now - since_s > long_s else None
        return None

    def _newest(self) -> RunKey | None:
        """Return the active run of the least claim, of these the newest, that frees blocks.

        The last active run is never returned.
        """
        if len(self._active) < 2:
            return None
        newest_first = list(self._active)[::-1]
        for run in sorted(newest_first, key=self._order_of()):
            if self._working_sets.would_free_blocks(self._readers[run]):
                return run
        return None

    def _preemptible(self, run: RunKey, num_blocks: int, now: float) -> RunKey | None:
        """Return the active run that gives way to a queued one; None if there is none.

        A run of lower rank gives way at once, and so does one of lower priority of the same
        tenant, and one of a tenant that keeps as many active runs as the other gets. Of equal
        claims, the run that has been active longest gives way at the end of its time slice.

        Args:
            num_blocks: blocks that the queued run reads and no active run does.
        """
        if not self._active:
            return None
        claim, num_active = self._claims[run], self._num_active()

        def gives_way(other: _Claim) -> bool:
            if other.rank != claim.rank:
                return other.rank < claim.rank
            if other.tenant == claim.tenant:
                return other.priority < claim.priority
            return num_active[other.tenant] - 1 >= num_active[claim.tenant] + 1

        for candidate in sorted(self._active, key=self._order_of()):
            if gives_way(self._claims[candidate]):
                return candidate
        slice_s = max(MIN_SLICE_S, SLICE_FACTOR * self._compute_s(num_blocks))
        for candidate, since_s in self._active.items():
            other = self._claims[candidate]
            if other.rank == claim.rank and (other.tenant != claim.tenant or other == claim):
                is_over = now - max(self._queue[run], since_s) > slice_s
                return candidate if is_over else None
        return None

    def _num_active(self) -> Counter[str]:
        """Return the active runs of each tenant."""
        return Counter(self._claims[run].tenant for run in self._active)

    def _order_of(self) -> Callable[[RunKey], tuple[int, int, int]]:
        """Return the order of claims: the highest is admitted first, the lowest gives way first."""
        num_active = self._num_active()

        def order(run: RunKey) -> tuple[int, int, int]:
            claim = self._claims[run]
            return claim.rank, -num_active[claim.tenant], claim.priority

        return order

    def _num_additional(self, run: RunKey) -> int:
        """Return the blocks in a run's working sets that no active run reads."""
        return self._working_sets.num_additional(self._readers[run])
