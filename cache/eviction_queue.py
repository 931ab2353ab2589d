"""Eviction from the device: which indexed blocks can be evicted, in the order of the policy.

A block can be evicted if it is indexed, valid on the device, not leased, and no block on the device
continues it. Evicting it may make the block before it evictable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, NO_PAGE, BlockTable, DeviceState
from kvflow_jax.cache.lazy_queue import TenantQueues
from kvflow_jax.cache.policy import BlockFacts, EvictionOrder
from kvflow_jax.errors import IntegrityError


class EvictionQueue:
    """The evictable blocks of the device.

    Attributes:
        num_idle: unleased indexed blocks that have a page, loading ones included.
    """

    def __init__(self, table: BlockTable, order: EvictionOrder) -> None:
        self.num_idle = 0
        self._table = table
        self._scalars = table.scalars
        self._order = order
        self._queues = TenantQueues(self._is_evictable)

    def enqueue(self, blocks: np.ndarray) -> None:
        """Queue those of ``blocks`` (i32[n]) that are evictable, or update their keys."""
        table = self._table
        is_evictable = (table.num_children[blocks] == 0) & (table.leases[blocks] == 0)
        is_evictable &= table.device_state[blocks] == DeviceState.VALID
        leaves = blocks[is_evictable]
        if not len(leaves):
            return
        tenants = table.tenant[leaves]
        for tenant in {int(tenants[0])} if (tenants == tenants[0]).all() else set(tenants.tolist()):
            own = leaves[tenants == tenant]
            keys = self._order(BlockFacts(table, own)).tolist()
            self._queues.push(tenant, own.tolist(), keys)

    def peek(self, tenant: int | None = None) -> int | None:
        """Return the block that would be evicted next; None if none is evictable.

        Args:
            tenant: whose block; None: of any.
        """
        top = self._queues.top(tenant)
        return None if top is None else top[1]

    def pop(
        self,
        max_blocks: int,
        may_evict: Callable[[int], bool] | None = None,
        tenant: int | None = None,
    ) -> list[int]:
        """Take up to ``max_blocks`` blocks off the device, and return them in order of eviction.

        The caller drops their pages.

        Args:
            may_evict: no leaf that it rejects is taken, and none after it; None: accept all.
            tenant: whose blocks; None: of all.
        """
        victims: list[int] = []
        while len(victims) < max_blocks:
            top = self._queues.top(tenant)
            if top is None:
                break
            _, leaf, queue = top
            if may_evict is not None and not may_evict(leaf):
                break
            queue.pop()
            for block in self._run(leaf, max_blocks - len(victims), tenant):
                victims.append(block)
                parent = self._unlink(block)
            if parent is not None:
                self.enqueue(np.array([parent], np.int32))
        return victims

    def unlink(self, block: int) -> None:
        """Take a block, which no other on the device continues, off the device."""
        parent = self._unlink(block)
        if parent is not None:
            self.enqueue(np.array([parent], np.int32))

    def check_integrity(self) -> None:
        """Raise IntegrityError unless the idle blocks are counted and the leaves are queued."""
        table = self._table
        indexed = np.flatnonzero(table.head != NO_BLOCK)
        idle = indexed[(table.leases[indexed] == 0) & (table.page[indexed] != NO_PAGE)]
        if len(idle) != self.num_idle:
            raise IntegrityError(f"{len(idle)} blocks are idle, {self.num_idle} are counted")
        evictable = idle[table.num_children[idle] == 0]
        evictable = evictable[table.device_state[evictable] == DeviceState.VALID]
        if self._queues.items() != set(evictable.tolist()):
            raise IntegrityError("the queued leaves are not the evictable ones")

    def _is_evictable(self, block: int) -> bool:
        table = self._scalars
        return (
            not table.leases[block]
            and not table.num_children[block]
            and table.device_state[block] == DeviceState.VALID
            and table.head[block] != NO_BLOCK
        )

    def _unlink(self, block: int) -> int | None:
        """Mark a block as off the device; return its parent if no other block continues that."""
        table = self._scalars
        # Pages are dropped together later; until then the state keeps the block from being a victim
        # again.
        table.device_state[block] = DeviceState.NONE
        parent = table.parent[block]
        if parent == NO_BLOCK:
            return None
        num_children = table.num_children[parent] = table.num_children[parent] - 1
        return None if num_children else parent

    def _run(self, leaf: int, max_blocks: int, tenant: int | None) -> Sequence[int]:
        """Return the next victim with the blocks of its node that are evicted right after it.

        Their keys are computed in one call, and the queue is bypassed while they are lower than its
        top.
        """
        run = self._only_children(leaf, max_blocks)
        if len(run) == 1:
            return run
        keys = self._order(BlockFacts(self._table, np.array(run, np.int32))).tolist()
        top = self._queues.top(tenant)
        if top is None:
            return run
        num_lower = next((i for i in range(1, len(run)) if keys[i] > top[0]), len(run))
        return run[:num_lower]

    def _only_children(self, leaf: int, max_blocks: int) -> list[int]:
        """Return a leaf and the blocks before it in its node that become leaves one after another.

        They are in order of eviction, and at most ``max_blocks``.
        """
        table, block, run = self._scalars, leaf, [leaf]
        head = table.head[leaf]
        while len(run) < max_blocks:
            block = table.parent[block]
            if (
                block == NO_BLOCK
                or table.num_children[block] != 1
                or table.head[block] != head
                or table.leases[block]
                or table.device_state[block] != DeviceState.VALID
            ):
                break
            run.append(block)
        return run
