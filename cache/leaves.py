"""The leaves of the index that may be evicted, in the order of the policy."""

from __future__ import annotations

import heapq
from itertools import count

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, BlockTable
from kvflow_jax.cache.policy import EvictionOrder


class EvictableLeaves:
    """A heap of indexed blocks that no lease holds and none continues, lowest key first.

    Entries are never removed when a block is leased, continued or used again, only seen to be
    stale when they come up: the table says which of them still tell the truth.
    """

    def __init__(self, table: BlockTable, order: EvictionOrder) -> None:
        self._table = table
        self._order = order
        self._heap: list[tuple[float, int, int, int]] = []  # key, tiebreak, block, generation
        self._tiebreak = count()

    def __len__(self) -> int:
        """Entries, stale ones too."""
        return len(self._heap)

    def offer(self, blocks: np.ndarray) -> None:
        """Add leaves i32[n] that may go from now on, each with its key of now."""
        if not len(blocks):
            return
        keys = self._order(self._table, blocks).tolist()
        generations = self._table.generation[blocks].tolist()
        for key, block, generation in zip(keys, blocks.tolist(), generations, strict=True):
            heapq.heappush(self._heap, (key, next(self._tiebreak), block, generation))
        if len(self._heap) > 2 * self._table.num_slots + 64:
            self._heap = [entry for entry in self._heap if self._is_current(entry)]
            heapq.heapify(self._heap)

    def pop(self) -> int | None:
        """The leaf that goes next; None where there is none."""
        while self._heap:
            entry = heapq.heappop(self._heap)
            if self._is_current(entry):
                return entry[2]
        return None

    def blocks(self) -> set[int]:
        """All that are on offer."""
        return {entry[2] for entry in self._heap if self._is_current(entry)}

    def _is_current(self, entry: tuple[float, int, int, int]) -> bool:
        key, _, block, generation = entry
        table = self._table
        return bool(
            table.generation[block] == generation
            and table.num_children[block] == 0
            and table.leases[block] == 0
            and table.head[block] != NO_BLOCK
            and self._order(table, np.array([block], np.int32))[0] == key
        )
