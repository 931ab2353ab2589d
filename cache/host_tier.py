"""Host tier: copies of blocks in pinned host memory, grouped in extents, under a budget.

An *extent* is a run of consecutive blocks of one node, transferred and dropped as a unit: each
array of a transfer costs about 30 us, so single pages would not saturate a link. A block has a
host copy only if the block before it has one, so every copy is reachable from the root.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, NO_EXTENT, NO_PAGE, BlockTable, HostState
from kvflow_jax.cache.lazy_queue import TenantQueues
from kvflow_jax.cache.policy import BlockFacts, EvictionOrder
from kvflow_jax.errors import IntegrityError


@dataclass(slots=True, eq=False)
class Extent:
    """Host copies of a run of blocks.

    Attributes:
        blocks: i32[n], in sequence order.
        data: the copies once they are written, opaque to the cache: the array that ``Transfers``
            returned.
        num_children: extents that continue this one.
        num_pins: loads in flight and other uses, during which the extent must not be dropped.
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
        order: the eviction policy.
        sizes: allowed lengths of an extent in blocks, ascending from 1. Keep them few, since each
            length compiles a program.
    """

    def __init__(
        self, table: BlockTable, order: EvictionOrder, max_blocks: int, sizes: Sequence[int]
    ) -> None:
        self.max_blocks = max_blocks
        self.num_blocks = 0  # in use
        self.num_blocks_of: Counter[int] = Counter()  # in use, by index of the tenant
        self.extents: dict[int, Extent] = {}
        self._table = table
        self._order = order
        self._sizes = tuple(sizes)
        self._queues = TenantQueues(self._is_evictable)
        self._next_number = 0

    @property
    def max_extent_blocks(self) -> int:
        """Length of the longest allowed extent, in blocks."""
        return self._sizes[-1]

    def split_into_extents(self, blocks: np.ndarray) -> list[np.ndarray]:
        """Split a run of blocks i32[n] into runs of allowed lengths, none across two nodes."""
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
        """Reserve budget for copies of ``blocks`` (i32[n]) and mark them as being written.

        Raises:
            IntegrityError: the budget is exceeded.
        """
        if len(blocks) > self.max_blocks - self.num_blocks:
            raise IntegrityError("the budget of the host tier is exceeded")
        extent = Extent(self._next_number, blocks)
        self._next_number += 1
        self.extents[extent.number] = extent
        self._count(extent, len(blocks))
        self._table.extent[blocks] = extent.number
        self._table.host_state[blocks] = HostState.WRITING
        if (parent := self.parent_of(extent)) is not None:
            parent.num_children += 1
        return extent

    def complete(self, extent: Extent, data: Any) -> None:
        """Mark the copies of an extent as written; they may be evicted from now on."""
        extent.data = data
        self._table.host_state[extent.blocks] = HostState.VALID
        self.enqueue(extent)

    def drop(self, extent: Extent) -> None:
        """Drop the copies of an extent.

        Raises:
            IntegrityError: another extent continues it, or it is pinned.
        """
        if extent.num_children or extent.num_pins:
            raise IntegrityError("cannot drop an extent that is pinned or continued by another")
        parent = self.parent_of(extent)
        del self.extents[extent.number]
        self._count(extent, -len(extent.blocks))
        self._table.extent[extent.blocks] = NO_EXTENT
        self._table.host_state[extent.blocks] = HostState.NONE
        extent.data = None
        if parent is not None:
            parent.num_children -= 1
            self.enqueue(parent)

    def parent_of(self, extent: Extent) -> Extent | None:
        """Return the extent that this one continues; None for the first of a path."""
        parent = int(self._table.parent[extent.blocks[0]])
        return None if parent == NO_BLOCK else self.extents[int(self._table.extent[parent])]

    def pin(self, extent: Extent) -> None:
        """Protect an extent from eviction until ``unpin``. Pins nest."""
        extent.num_pins += 1

    def unpin(self, extent: Extent) -> None:
        """Undo one ``pin``."""
        extent.num_pins -= 1
        self.enqueue(extent)

    def enqueue(self, extent: Extent) -> None:
        """Queue an extent for eviction if it is evictable, or after the key of its blocks fell."""
        if self._is_evictable(extent.number):
            self._queues.push(self._tenant_of(extent), [extent.number], [self._key(extent)])

    def victim(self, tenant: int | None = None) -> tuple[list[float], Extent] | None:
        """Return the key and the extent that would be evicted next; None if none is evictable.

        Args:
            tenant: whose extent; None: of any.
        """
        while (top := self._queues.top(tenant)) is not None:
            key, number, _ = top
            extent = self.extents[number]
            # Neither uses of its blocks nor their eviction from the device update the queue.
            current = self._key(extent)
            if current == key:
                return key, extent
            self._queues.push(self._tenant_of(extent), [number], [current])
        return None

    def check_integrity(self) -> None:
        """Raise IntegrityError unless extents, their chains and the budget agree with the table."""
        table = self._table
        if sum(len(extent.blocks) for extent in self.extents.values()) != self.num_blocks:
            raise IntegrityError("the block count of the host tier is wrong")
        if self.num_blocks > self.max_blocks:
            raise IntegrityError("the host tier is over its budget")
        num_blocks_of = Counter[int]()
        for extent in self.extents.values():
            num_blocks_of[self._tenant_of(extent)] += len(extent.blocks)
        if num_blocks_of != +self.num_blocks_of:
            raise IntegrityError("the block counts of tenants in the host tier are wrong")
        children = dict.fromkeys(self.extents, 0)
        for extent in self.extents.values():
            state = HostState.VALID if extent.is_valid else HostState.WRITING
            if (table.extent[extent.blocks] != extent.number).any():
                raise IntegrityError(f"blocks of extent {extent.number} refer to another extent")
            if (table.host_state[extent.blocks] != state).any():
                raise IntegrityError(f"blocks of extent {extent.number} have a wrong host state")
            if (table.parent[extent.blocks[1:]] != extent.blocks[:-1]).any():
                raise IntegrityError(f"the blocks of extent {extent.number} are not consecutive")
            if (parent := self.parent_of(extent)) is not None:
                children[parent.number] += 1
        if children != {extent.number: extent.num_children for extent in self.extents.values()}:
            raise IntegrityError("the counts of child extents are wrong")
        if np.count_nonzero(table.extent != NO_EXTENT) != self.num_blocks:
            raise IntegrityError("a block refers to an extent that does not contain it")
        evictable = {number for number in self.extents if self._is_evictable(number)}
        if self._queues.items() != evictable:
            raise IntegrityError("the queued extents are not the evictable ones")

    def _count(self, extent: Extent, num_blocks: int) -> None:
        self.num_blocks += num_blocks
        self.num_blocks_of[self._tenant_of(extent)] += num_blocks

    def _tenant_of(self, extent: Extent) -> int:
        return int(self._table.tenant[extent.blocks[0]])

    def _is_evictable(self, number: int) -> bool:
        extent = self.extents.get(number)
        return (
            extent is not None
            and extent.is_valid
            and not extent.num_children
            and not extent.num_pins
        )

    def _key(self, extent: Extent) -> list[float]:
        # The first block stands for the extent: if its node was split since, that is the part
        # which more agents share.
        key = self._order(BlockFacts(self._table, extent.blocks[:1]))[0].tolist()
        if self._table.page[extent.blocks[-1]] == NO_PAGE:
            return [1.0, *key]
        # Copies of blocks on the device are evicted before sole copies. Among them the order is
        # reversed: the blocks that stay on the device longest need their copies last.
        return [0.0, *(-number for number in key)]
