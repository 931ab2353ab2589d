"""Loads of blocks, planned and running, and what became of the blocks that were prefetched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kvflow_jax.cache.host_tier import Extent
from kvflow_jax.cache.transfer_plans import Load


@dataclass(slots=True)
class LoadCounters:
    """Counts of blocks, which never decrease.

    Attributes:
        num_loaded: loaded to the device.
        num_prefetched: planned by the prefetcher; the others are parts of it.
        num_useful: leased after the load had completed.
        num_late: leased while loading.
        num_wasted: evicted or cancelled before any lease.
    """

    num_loaded: int = 0
    num_prefetched: int = 0
    num_useful: int = 0
    num_late: int = 0
    num_wasted: int = 0


class Loads:
    """Knows which load each LOADING block waits for. Changes no state of a block."""

    def __init__(self) -> None:
        self.counters = LoadCounters()
        self._planned: list[Load] = []
        self._load_of: dict[int, Load] = {}  # by LOADING block
        self._unread: set[int] = set()  # prefetched blocks not leased since

    def __bool__(self) -> bool:
        """Whether a block is loading."""
        return bool(self._load_of)

    @property
    def planned(self) -> list[Load]:
        """Loads that have not been drained."""
        return self._planned

    @property
    def load_of(self) -> dict[int, Load]:
        """The load of each LOADING block, in order of planning; not to be changed."""
        return self._load_of

    def running(self) -> list[Load]:
        """Return the loads with wanted blocks, in order of planning."""
        return list(dict.fromkeys(self._load_of.values()))

    def plan(self, extent: Extent, blocks: np.ndarray, *, is_prefetch: bool) -> None:
        """Plan the load of ``blocks``, i32[n] of an extent."""
        load = Load(extent, blocks, is_prefetch, len(blocks))
        ids = blocks.tolist()
        self._load_of.update(dict.fromkeys(ids, load))
        self._planned.append(load)
        if is_prefetch:
            self.counters.num_prefetched += len(ids)
            self._unread.update(ids)

    def drain_planned(self) -> list[Load]:
        """Return the loads planned since the last call of which a block is still wanted."""
        planned, self._planned = self._planned, []
        return [load for load in planned if load.num_wanted]

    def wanted(self, load: Load) -> list[int]:
        """Return the blocks of a load that still wait for it, in path order."""
        return [block for block in load.blocks.tolist() if self._load_of.get(block) is load]

    def end(self, load: Load, blocks: Iterable[int]) -> bool:
        """Remove blocks from a load, completed or cancelled; return whether it has no more."""
        num = 0
        for block in blocks:
            del self._load_of[block]
            num += 1
        load.num_wanted -= num
        return num > 0 and not load.num_wanted

    def on_lease(self, blocks: np.ndarray) -> None:
        """Count the prefetched among leased ``blocks``, i32[n], as useful or late."""
        for block in self._unread.intersection(blocks.tolist()) if self._unread else ():
            self._unread.remove(block)
            is_late = block in self._load_of
            self.counters.num_late += is_late
            self.counters.num_useful += not is_late

    def on_drop(self, blocks: Iterable[int]) -> None:
        """Count those of ``blocks``, which leave the device, that no lease has used as wasted."""
        if self._unread:
            wasted = self._unread.intersection(blocks)
            self._unread -= wasted
            self.counters.num_wasted += len(wasted)
