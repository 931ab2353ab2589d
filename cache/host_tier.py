"""The host tier: copies of blocks in extents, under a budget.

An *extent* is a run of consecutive blocks of one node, moved and dropped as one: each array costs a
transfer some 30 us, so single pages would not fill a link. A block has a copy here only if the
block before it has one, so what is here can always be reached.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, NO_EXTENT, NO_PAGE, BlockTable, HostState
from kvflow_jax.cache.lazy_queue import LazyQueue
from kvflow_jax.cache.policy import EvictionOrder
from kvflow_jax.errors import IntegrityError


@dataclass(slots=True, eq=False)
class Extent:
    """Host copies of a run of blocks.

    Attributes:
        blocks: i32[n], in sequence order.
        data: the copies, once they are written; whoever moves blocks knows what it is.
        num_children: extents that continue it.
        num_pins: loads in progress, which need it to stay.
    """

    number: int
    blocks: np.ndarray
    data: Any = None
    num_children: int = 0
    num_pins: int = 0

    @property
    def is_valid(self) -> bool:
        return self.data is not None


class HostTier:
    """Extents under a budget of ``max_blocks`` blocks.

    Args:
        sizes: lengths an extent may have, blocks, ascending from 1: few, since each is a program.
    """

    def __init__(
        self, table: BlockTable, order: EvictionOrder, max_blocks: int, sizes: Sequence[int]
    ) -> None:
        self.max_blocks = max_blocks
        self.num_blocks = 0  # in use
        self.extents: dict[int, Extent] = {}
        self._table = table
        self._order = order
        self._sizes = tuple(sizes)
        self._queue = LazyQueue(self._may_go)
        self._next_number = 0

    @property
    def longest(self) -> int:
        """Blocks of the longest extent."""
        return self._sizes[-1]

    def cut(self, blocks: np.ndarray) -> list[np.ndarray]:
        """A run of blocks i32[n] as runs that extents can hold, none across a node's border."""
        heads = self._table.head[blocks]
        nodes = np.split(blocks, np.flatnonzero(heads[1:] != heads[:-1]) + 1)
        runs = []
        for node in nodes:
            start = 0
            for size in reversed(self._sizes):
                while len(node) - start >= size:
                    runs.append(node[start : start + size])
                    start += size
        return runs

    def add(self, blocks: np.ndarray) -> Extent:
        """Take room for copies of ``blocks`` (i32[n]), which are being written from now on."""
        if len(blocks) > self.max_blocks - self.num_blocks:
            raise IntegrityError("the host tier's budget is overspent")
        extent = Extent(self._next_number, blocks)
        self._next_number += 1
        self.extents[extent.number] = extent
        self.num_blocks += len(blocks)
        self._table.extent[blocks] = extent.number
        self._table.host_state[blocks] = HostState.WRITING
        if (above := self.before(extent)) is not None:
            above.num_children += 1
        return extent

    def complete(self, extent: Extent, data: Any) -> None:
        """The copies are written."""
        extent.data = data
        self._table.host_state[extent.blocks] = HostState.VALID
        self.offer(extent)

    def drop(self, extent: Extent) -> None:
        """Give up the copies of an extent that none continues."""
        if extent.num_children or extent.num_pins:
            raise IntegrityError("an extent that is needed must not be dropped")
        above = self.before(extent)
        del self.extents[extent.number]
        self.num_blocks -= len(extent.blocks)
        self._table.extent[extent.blocks] = NO_EXTENT
        self._table.host_state[extent.blocks] = HostState.NONE
        extent.data = None
        if above is not None:
            above.num_children -= 1
            self.offer(above)

    def before(self, extent: Extent) -> Extent | None:
        """The extent that this one continues."""
        parent = int(self._table.parent[extent.blocks[0]])
        return None if parent == NO_BLOCK else self.extents[int(self._table.extent[parent])]

    def pin(self, extent: Extent) -> None:
        extent.num_pins += 1

    def unpin(self, extent: Extent) -> None:
        extent.num_pins -= 1
        self.offer(extent)

    def offer(self, extent: Extent) -> None:
        """Let an extent go when its turn comes; again when its blocks' key has fallen."""
        if self._may_go(extent.number):
            self._queue.offer([extent.number], [self._key(extent)])

    def victim(self) -> tuple[list[float], Extent] | None:
        """The extent that goes next, and its key; None where none can."""
        while (top := self._queue.peek()) is not None:
            key, extent = top[0], self.extents[top[1]]
            # Neither uses of its blocks since it was offered nor their leaving the device are
            # told.
            now = self._key(extent)
            if now == key:
                return key, extent
            self._queue.offer([extent.number], [now])
        return None

    def check_integrity(self) -> None:
        """Raise IntegrityError unless extents, their chains and the budget agree with the table."""
        table = self._table
        if sum(len(extent.blocks) for extent in self.extents.values()) != self.num_blocks:
            raise IntegrityError("the host tier miscounts its blocks")
        if self.num_blocks > self.max_blocks:
            raise IntegrityError("the host tier is over its budget")
        children = dict.fromkeys(self.extents, 0)
        for extent in self.extents.values():
            state = HostState.VALID if extent.is_valid else HostState.WRITING
            if (table.extent[extent.blocks] != extent.number).any():
                raise IntegrityError(f"blocks of extent {extent.number} do not know it")
            if (table.host_state[extent.blocks] != state).any():
                raise IntegrityError(f"blocks of extent {extent.number} have a wrong host state")
            if (table.parent[extent.blocks[1:]] != extent.blocks[:-1]).any():
                raise IntegrityError(f"extent {extent.number} is no run of blocks")
            if (above := self.before(extent)) is not None:
                children[above.number] += 1
        if children != {extent.number: extent.num_children for extent in self.extents.values()}:
            raise IntegrityError("the host tier miscounts which extents continue which")
        if np.count_nonzero(table.extent != NO_EXTENT) != self.num_blocks:
            raise IntegrityError("a block names an extent that does not hold it")
        able = {number for number in self.extents if self._may_go(number)}
        if self._queue.items() != able:
            raise IntegrityError("the extents on offer are not those that may go")

    def _may_go(self, number: int) -> bool:
        extent = self.extents.get(number)
        return (
            extent is not None
            and extent.is_valid
            and not extent.num_children
            and not extent.num_pins
        )

    def _key(self, extent: Extent) -> list[float]:
        # Of an extent its first block counts: where a node was split since, the part that more
        # agents share.
        key = self._order(self._table, extent.blocks[:1])[0].tolist()
        if self._table.page[extent.blocks[-1]] == NO_PAGE:
            return [1.0, *key]
        # Copies of what is on the device go before the only ones there are; and first of those
        # what will be there longest, as the device lets go of the others sooner.
        return [0.0, *(-part for part in key)]
