"""How long blocks stay on the device, and are idle: vLLM's histograms of KV cache residency."""

from __future__ import annotations

from operator import add
from typing import NamedTuple

import numpy as np

from kvflow_jax.cache.blocks import BlockTable

# vLLM's buckets, seconds.
AGE_BOUNDS_S = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0),
    *(60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0),
)

_BOUNDS_S = np.array(AGE_BOUNDS_S)


class AgeHistogram(NamedTuple):
    """A histogram of times.

    Attributes:
        counts: times up to each of ``AGE_BOUNDS_S``, and above the last.
        sum_s: sum of the times, seconds.
    """

    counts: tuple[int, ...] = (0,) * (len(AGE_BOUNDS_S) + 1)
    sum_s: float = 0.0

    def with_ages(self, ages_s: np.ndarray) -> AgeHistogram:
        """Return the histogram with more times, f64[n]."""
        more = np.bincount(_BOUNDS_S.searchsorted(ages_s), minlength=len(self.counts)).tolist()
        return self.plus(AgeHistogram(tuple(more), float(ages_s.sum())))

    def plus(self, other: AgeHistogram) -> AgeHistogram:
        """Return the sum of both histograms."""
        return AgeHistogram(tuple(map(add, self.counts, other.counts)), self.sum_s + other.sum_s)


class BlockAges(NamedTuple):
    """Histograms of the blocks of a cache.

    Attributes:
        lifetime: from the page that a block gets to its eviction.
        idle_before_evict: from the last use of a block to its eviction.
        reuse_gap: from the last use of a block to the lease that uses it again.
    """

    lifetime: AgeHistogram = AgeHistogram()
    idle_before_evict: AgeHistogram = AgeHistogram()
    reuse_gap: AgeHistogram = AgeHistogram()

    def plus(self, other: BlockAges) -> BlockAges:
        """Return the sums of the histograms."""
        if self == NO_AGES:  # as a rule, and in every step
            return other
        return BlockAges(*(a.plus(b) for a, b in zip(self, other, strict=True)))


NO_AGES = BlockAges()


class BlockAgeRecorder:
    """Collects the times of blocks as arrays, and counts them when the histograms are read."""

    def __init__(self, table: BlockTable) -> None:
        self._table = table
        self._ages = NO_AGES
        self._evicted: list[tuple[np.ndarray, np.ndarray]] = []  # lifetimes, idle times
        self._reused: list[np.ndarray] = []

    @property
    def ages(self) -> BlockAges:
        """The histograms of all times so far."""
        lifetime, idle, reuse_gap = self._ages
        if self._evicted:
            lifetimes, idle_times = zip(*self._evicted, strict=True)
            lifetime = lifetime.with_ages(np.concatenate(lifetimes))
            idle = idle.with_ages(np.concatenate(idle_times))
            self._evicted = []
        if self._reused:
            reuse_gap = reuse_gap.with_ages(np.concatenate(self._reused))
            self._reused = []
        self._ages = BlockAges(lifetime, idle, reuse_gap)
        return self._ages

    def note_evicted(self, blocks: np.ndarray, now: float) -> None:
        """Record that blocks i32[n], which still have their pages, are evicted."""
        table = self._table
        self._evicted.append((now - table.born[blocks], now - table.last_use[blocks]))

    def note_reused(self, blocks: np.ndarray, now: float) -> None:
        """Record that blocks i32[n] on the device are about to be leased again."""
        if len(blocks):
            self._reused.append(now - self._table.last_use[blocks])
