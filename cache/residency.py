"""Residency of indexed blocks: pages of the device pool above extents of the host tier.

                     load (host to device)
        host  ───────────────────────────────▶  device
       extents ◀───────────────────────────────  pages
                    offload (device to host)

The blocks on the device, and the blocks on the host, each form a prefix of every path through the
index: blocks are evicted leaf first and loaded root first. This file only decides and counts. Its
users drain the planned transfers, carry them out, and report their completion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kvflow_jax.cache.block_ages import BlockAgeRecorder
from kvflow_jax.cache.blocks import NO_BLOCK, NO_PAGE, BlockTable, DeviceState, HostState
from kvflow_jax.cache.eviction_queue import EvictionQueue
from kvflow_jax.cache.host_tier import Extent, HostTier
from kvflow_jax.cache.loads import Loads
from kvflow_jax.cache.policy import BlockFacts, EvictionOrder
from kvflow_jax.cache.tenant_rooms import TenantRooms
from kvflow_jax.cache.transfer_plans import Load, Offload, PageWrites
from kvflow_jax.errors import IntegrityError


class Residency:
    """Plans loads, offloads and evictions. Uses the table and the tiers, not the index.

    Args:
        order: the eviction policy, of both tiers.
        host: the host tier; its budget may be 0.
        should_offload: (table, block) -> whether to copy a block to the host when it is evicted
            without a host copy.
        forget: removes blocks i32[n] from the index; called with each after those that continue it.

    Attributes:
        num_evicted, num_offloaded: counters of blocks.
        ages: how long blocks stay on the device, and how long they are idle.
        rooms: what each tenant may have evicted.
        offload_budget: number of blocks whose offload may begin now, set by the transfer manager.
    """

    def __init__(
        self,
        table: BlockTable,
        order: EvictionOrder,
        host: HostTier,
        should_offload: Callable[[BlockTable, int], bool],
        forget: Callable[[np.ndarray], None],
    ) -> None:
        self.host = host
        self.loads = Loads()
        self.ages = BlockAgeRecorder(table)
        self.num_evicted = 0
        self.num_offloaded = 0
        self.offload_budget = 1 << 30
        self._table = table
        self._order = order
        self._should_offload = should_offload
        self._forget = forget
        self._queue = EvictionQueue(table, order)
        self.rooms = TenantRooms(table)
        self._offloads: list[Offload] = []  # planned, not yet drained
        self._host_only_nodes: set[int] = set()  # of which a block became host-only, not drained

    @property
    def num_available(self) -> int:
        """Pages that can be allocated now: free pages and those of idle blocks and prefetches."""
        return self._table.num_free_pages + self._queue.num_idle

    def num_available_to(self, tenant: str) -> int:
        """Return how many pages can be allocated now for a tenant."""
        if not self.rooms.are_many:
            return self.num_available
        claimable = self.rooms.on_device().claimable(self.rooms.index_of(tenant))
        return self._table.num_free_pages + int(claimable.sum())

    @property
    def planned_offloads(self) -> Sequence[Offload]:
        """Offloads that have not been drained."""
        return self._offloads

    def drain_offloads(self) -> list[Offload]:
        """Return the offloads planned since the last call."""
        offloads, self._offloads = self._offloads, []
        return offloads

    def drain_host_only_nodes(self) -> set[int]:
        """Return the nodes of which a block became host-only since the last call."""
        nodes, self._host_only_nodes = self._host_only_nodes, set()
        return nodes

    def num_on_device(self, path: np.ndarray) -> int:
        """Return how many leading blocks of a path i32[n] have a page; the rest is host-only."""
        return int(np.count_nonzero(self._table.page[path] != NO_PAGE))

    def num_on_host(self, path: np.ndarray) -> int:
        """Return how many leading blocks of a path i32[n] have a host copy, valid or not."""
        return int(np.count_nonzero(self._table.host_state[path] != HostState.NONE))

    def num_loadable(self, path: np.ndarray) -> int:
        """Return how many leading blocks of a path i32[n] have a valid host copy.

        Offloads complete in any order, so a valid copy may follow one that is still being written.
        """
        is_valid = self._table.host_state[path] == HostState.VALID
        return len(path) if is_valid.all() else int(is_valid.argmin())

    def acquire(self, blocks: np.ndarray, now: float) -> None:
        """Lease indexed blocks i32[n], all of which have a page."""
        table = self._table
        self._queue.num_idle -= int((table.leases[blocks] == 0).sum())
        table.leases[blocks] += 1
        table.last_use[blocks] = now
        self.loads.on_lease(blocks)

    def release(self, blocks: np.ndarray) -> None:
        """Make indexed blocks i32[n], whose last lease has ended, evictable."""
        self._queue.num_idle += len(blocks)
        self._queue.enqueue(blocks)

    def reorder(self, path: np.ndarray) -> None:
        """Update the queues after the key of a node's blocks i32[n] has changed."""
        on_device, on_host = self.num_on_device(path), self.num_on_host(path)
        if on_device:
            self._queue.enqueue(path[on_device - 1 : on_device])
        if on_host:
            self.host.enqueue(self.host.extents[int(self._table.extent[path[on_host - 1]])])

    def next_victim(self) -> int | None:
        """Return the block that would be evicted next; None if none is evictable."""
        return self._queue.peek()

    def evict(self, count: int, now: float, tenant: int | None = None) -> None:
        """Free ``count`` pages, lowest key of the policy first, leaves first.

        Unleased loads are cancelled once no leaf is evictable.

        Args:
            tenant: which needs them, so that those of tenants beyond their rooms go first, and
                none within the rooms of others; None: the policy alone decides.

        Raises:
            IntegrityError: fewer pages can be freed.
        """
        target = self._table.num_free_pages + count
        while (short := target - self._table.num_free_pages) > 0:
            if not self._evict_for(tenant, short, now) and not self._cancel_newest(tenant):
                raise IntegrityError(f"cannot evict {count} blocks: {short} too few are evictable")

    def evict_while(
        self, count: int, may_evict: Callable[[int], bool], now: float, tenant: int
    ) -> None:
        """Free up to ``count`` pages for a tenant, as long as ``may_evict`` accepts a victim."""
        while count > 0 and (num := self._evict_for(tenant, count, now, may_evict)):
            count -= num

    def load(
        self,
        blocks: np.ndarray,
        now: float,
        *,
        tenant: int | None = None,
        is_prefetch: bool = False,
    ) -> None:
        """Plan the load of host-only blocks i32[n] of a path, whose copies are valid.

        The block before them already has a page. They count as idle until they are leased.
        """
        table, host = self._table, self.host
        numbers = table.extent[blocks]
        cuts = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
        runs = np.split(blocks, cuts)
        extents = [host.extents[int(table.extent[run[0]])] for run in runs]
        # Pinned before the eviction, which may need host memory for the blocks it offloads.
        for extent in extents:
            host.pin(extent)
        short = len(blocks) - table.num_free_pages
        if short > 0:
            self.evict(short, now, tenant)
        table.assign_pages(blocks, DeviceState.LOADING, now)
        table.num_children[blocks[:-1]] += 1
        parent = int(table.parent[blocks[0]])
        if parent != NO_BLOCK:
            table.num_children[parent] += 1
        self._queue.num_idle += len(blocks)
        for run, extent in zip(runs, extents, strict=True):
            self.loads.plan(extent, run, is_prefetch=is_prefetch)

    def complete_load(self, load: Load) -> PageWrites:
        """Complete a load whose copies are on the device, in a buffer beside the pool.

        Its blocks are valid from the next step on.
        """
        ids = self.loads.wanted(load)
        wanted = np.array(ids, int)
        indices = np.flatnonzero(np.isin(load.extent.blocks, wanted))
        self._end_load(load, ids)
        self._table.device_state[wanted] = DeviceState.VALID
        self.loads.counters.num_loaded += len(ids)
        self._queue.enqueue(wanted)
        return PageWrites(indices.astype(np.int32), self._table.page[load.extent.blocks[indices]])

    def cancel(self, load: Load) -> int:
        """Cancel the unleased tail of a load, and return the number of pages that this freed."""
        table = self._table
        cancelled = []
        for block in reversed(self.loads.wanted(load)):
            if table.leases[block] or table.num_children[block]:
                break
            cancelled.append(block)
            self._queue.unlink(block)
        self._end_load(load, cancelled)
        self.loads.on_drop(cancelled)
        self._queue.num_idle -= len(cancelled)
        blocks = np.array(cancelled, np.int32)
        self._host_only_nodes.update(table.head[blocks].tolist())
        table.drop_pages(blocks)
        return len(cancelled)

    def offload(
        self, block: int, *, max_blocks: int | None = None, is_evicting: bool = False
    ) -> int:
        """Plan the offload of the path down to ``block``, as far as it has no host copy.

        The end of the path is left out if the host budget is exhausted by blocks needed sooner.

        Args:
            max_blocks: upper bound of the blocks planned now.
            is_evicting: whether the block is about to be evicted from the device.

        Returns:
            The number of blocks planned.
        """
        table, host = self._table, self.host
        path: list[int] = []
        ancestor = block
        while ancestor != NO_BLOCK and table.host_state[ancestor] == HostState.NONE:
            path.append(ancestor)
            ancestor = int(table.parent[ancestor])
        parent = None if ancestor == NO_BLOCK else host.extents[int(table.extent[ancestor])]
        if parent is not None:
            host.pin(parent)
        missing = np.array(path[::-1], np.int32)
        budget = self.offload_budget
        if max_blocks is not None:
            budget = min(max_blocks, budget)
        num = self._make_host_room(missing[: max(budget, 0)], is_evicting)
        self.offload_budget -= num
        for run in host.split_into_extents(missing[:num]) if num else ():
            extent = host.add(run)
            self._offloads.append(Offload(extent, table.page[run].copy()))
        if parent is not None:
            host.unpin(parent)
        self.num_offloaded += num
        return num

    def complete_offload(self, extent: Extent, data: Any) -> None:
        """Complete an offload with its copies; ignored if the extent was dropped meanwhile."""
        if self.host.extents.get(extent.number) is extent:
            self.host.complete(extent, data)
            host_only = extent.blocks[self._table.page[extent.blocks] == NO_PAGE]
            self._host_only_nodes.update(self._table.head[host_only].tolist())

    def drop_lost_extent(self, extent: Extent) -> None:
        """Drop an extent whose copies could not be written or read, and all that continue it.

        None of them may be loading.
        """
        if self.host.extents.get(extent.number) is not extent:
            return
        lost_numbers = {extent.number}
        lost = [extent]
        # In order of their numbers: an extent has a higher number than the one it continues.
        for other in self.host.extents.values():
            parent = self.host.parent_of(other)
            if parent is not None and parent.number in lost_numbers:
                lost_numbers.add(other.number)
                lost.append(other)
        for descendant in reversed(lost):
            self._drop_extent(descendant)

    def flush(self, now: float) -> None:
        """Drop every unleased block from both tiers."""
        while self.loads and self._cancel_newest():
            pass
        self._evict_leaves(self._queue.num_idle, now, offloads=False)
        for extent in sorted(self.host.extents.values(), key=lambda extent: -extent.number):
            if not (extent.num_children or extent.num_pins):
                self._drop_extent(extent)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless each tier has prefixes of paths, and all counts are right."""
        table = self._table
        indexed = np.flatnonzero(table.head >= 0)
        parents = table.parent[indexed]
        children = indexed[parents != NO_BLOCK]
        parents = parents[parents != NO_BLOCK]
        if ((table.page[children] != NO_PAGE) & (table.page[parents] == NO_PAGE)).any():
            raise IntegrityError("a block is on the device, and the block before it is not")
        if ((table.host_state[children] != 0) & (table.host_state[parents] == 0)).any():
            raise IntegrityError("a block is on the host, and the block before it is not")
        self._queue.check_integrity()
        load_of = self.loads.load_of
        if set(np.flatnonzero(table.device_state == DeviceState.LOADING)) != set(load_of):
            raise IntegrityError("the blocks in state LOADING are not those of the loads")
        for block, load in load_of.items():
            if table.extent[block] != load.extent.number or not load.extent.num_pins:
                raise IntegrityError(f"block {block} is loading from an extent that is not pinned")
        self.host.check_integrity()

    def _evict_for(
        self,
        tenant: int | None,
        max_blocks: int,
        now: float,
        may_evict: Callable[[int], bool] | None = None,
    ) -> int:
        """Free up to ``max_blocks`` pages of leaves for a tenant, and return how many."""
        if tenant is None or not self.rooms.are_many:
            return self._evict_leaves(max_blocks, now, may_evict)
        rooms = self.rooms.on_device()
        claimable = rooms.claimable(tenant)
        for other in rooms.order(tenant):
            num = min(max_blocks, int(claimable[other]))
            if num > 0 and (num := self._evict_leaves(num, now, may_evict, tenant=other)):
                return num
        return 0

    def _evict_leaves(
        self,
        max_blocks: int,
        now: float,
        may_evict: Callable[[int], bool] | None = None,
        *,
        tenant: int | None = None,
        offloads: bool = True,
    ) -> int:
        """Free up to ``max_blocks`` pages of leaves, and return how many.

        Args:
            may_evict: eviction stops at the first victim that it rejects; None: accept all.
            tenant: whose; None: of all.
            offloads: whether to offload what is worth a host copy.
        """
        table, host_state = self._table, self._table.scalars.host_state
        victims = self._queue.pop(max_blocks, may_evict, tenant)
        if not victims:
            return 0
        for block in victims if offloads and self.host.max_blocks else ():
            if not host_state[block] and self._should_offload(table, block):
                self.offload(block, is_evicting=True)
        self.loads.on_drop(victims)
        evicted = np.array(victims, np.int32)
        self._queue.num_idle -= len(evicted)
        self.num_evicted += len(evicted)
        self.ages.note_evicted(evicted, now)
        table.drop_pages(evicted)
        # Checked last: to make room for the last victim, the host may have dropped the first.
        is_on_host = table.host_state[evicted] != HostState.NONE
        self._host_only_nodes.update(table.head[evicted[is_on_host]].tolist())
        if not is_on_host.all():
            self._forget(evicted[~is_on_host])
        return len(evicted)

    def _cancel_newest(self, tenant: int | None = None) -> bool:
        """Cancel the unleased tail of the newest load that has one; False if none has.

        Args:
            tenant: which needs the pages: loads of others within their rooms go on; None: any.
        """
        loads = self.loads.running()[::-1]
        if tenant is not None and self.rooms.are_many:
            claimable = self.rooms.on_device().claimable(tenant)
            loads = [load for load in loads if claimable[self._table.tenant[load.blocks[0]]]]
        return any(self.cancel(load) for load in loads)

    def _end_load(self, load: Load, blocks: Sequence[int]) -> None:
        """Remove blocks from a load, completed or cancelled, and unpin its extent at its end."""
        if self.loads.end(load, blocks):
            self.host.unpin(load.extent)

    def _make_host_room(self, blocks: np.ndarray, is_evicting: bool) -> int:
        """Drop host copies that are needed later than ``blocks``; return how many blocks fit."""
        host = self.host
        if not len(blocks) or not host.max_blocks:
            return 0
        order = self._order(BlockFacts(self._table, blocks)).tolist()
        keys = [[float(is_evicting), *key] for key in order]
        tenant = int(self._table.tenant[blocks[0]])
        while (free := max(host.max_blocks - host.num_blocks, 0)) < len(blocks):
            victim = self._host_victim(tenant, free, keys[free])
            if victim is None:
                return free
            self._drop_extent(victim)
        return len(blocks)

    def _host_victim(self, tenant: int, num_added: int, key: list[float]) -> Extent | None:
        """Return the extent to drop for one more block of a tenant; None if there is none.

        Copies within the rooms of others stay. Those beyond them make room for blocks within the
        tenant's own room, and for others if these are needed sooner.

        Args:
            num_added: blocks of the tenant that are to be added before it.
            key: of the block.
        """
        host = self.host
        if not self.rooms.are_many:
            victim = host.victim()
            return victim[1] if victim is not None and victim[0] < key else None
        rooms = self.rooms.on_host(host.num_blocks_of, host.max_blocks)
        is_within_room = rooms.excess[tenant] + num_added < 0
        claimable = rooms.claimable(tenant)
        for other in rooms.order(tenant):
            victim = host.victim(other) if claimable[other] else None
            # An extent is dropped as a whole: none reaches into a room.
            if victim is None or len(victim[1].blocks) > claimable[other]:
                continue
            if victim[0] < key or (is_within_room and other != tenant):
                return victim[1]
        return None

    def _drop_extent(self, extent: Extent) -> None:
        """Drop the copies of an extent, and forget its blocks that are not on the device."""
        self.host.drop(extent)
        host_only = extent.blocks[self._table.page[extent.blocks] == NO_PAGE]
        if len(host_only):
            self._forget(host_only[::-1])
