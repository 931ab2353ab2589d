"""Where indexed blocks live: the device's slots over the host's extents.

                     load (host to device)
        host  ───────────────────────────────▶  device
       extents ◀───────────────────────────────  slots
                    backup (device to host)

What is on the device, and what is on the host, is a prefix of every path through the index: blocks
leave leaf first and come back root first. This file only decides and keeps count. Moves to be made
are left in ``loads`` and ``offloads`` for the engine, which reports back when they have landed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvflow_jax.cache.blocks import (
    NO_BLOCK,
    NO_PAGE,
    BlockTable,
    DeviceState,
    HostState,
)
from kvflow_jax.cache.host_tier import Extent, HostTier
from kvflow_jax.cache.lazy_queue import LazyQueue
from kvflow_jax.cache.policy import EvictionOrder
from kvflow_jax.errors import IntegrityError


@dataclass(slots=True, eq=False)
class Load:
    """Host copies on their way to the device.

    Attributes:
        blocks: i32[n], of the extent; those still ``loading`` are wanted.
        is_prefetch: whether no request had asked for it when it was planned.
    """

    extent: Extent
    blocks: np.ndarray
    is_prefetch: bool
    num_wanted: int


@dataclass(slots=True, eq=False)
class Offload:
    """Blocks on their way to the host. Their slots may be reused once they have been read."""

    extent: Extent
    pages: np.ndarray  # i32[n], where they are when the backup is planned


class Residency:
    """Moves and evicts. Knows the table and the tiers, not the index.

    Args:
        order: the eviction policy, of both tiers.
        host: the host tier; its budget may be nothing.
        backs_up: (table, block) -> whether a block is worth a copy when it is evicted without one.
        forget: takes blocks, each after those that continue it, out of the index.
    """

    def __init__(
        self,
        table: BlockTable,
        order: EvictionOrder,
        host: HostTier,
        backs_up: Callable[[BlockTable, int], bool],
        forget: Callable[[list[int]], None],
    ) -> None:
        self.host = host
        self.loads: list[Load] = []  # planned, for the engine to take
        self.offloads: list[Offload] = []
        self.num_idle = 0  # indexed blocks with a slot that no lease holds
        self.num_evicted = 0
        self.num_offloaded = 0
        self.num_loaded = 0
        self.num_prefetched = 0  # blocks whose prefetch was planned, and what came of them:
        self.num_useful = 0  # leased after they had landed
        self.num_late = 0  # leased while they were on their way
        self.num_wasted = 0  # evicted or cancelled before any lease
        self.offload_budget = 1 << 30  # blocks whose copying may begin now; whoever copies sets it
        self.left: set[int] = set()  # nodes of which a block now is on the host alone
        self._table = table
        self._scalars = table.scalars
        self._order = order
        self._backs_up = backs_up
        self._forget = forget
        self._device = LazyQueue(self._may_leave_device)
        self._loading: dict[int, Load] = {}  # block -> the load that brings it
        self._unread: set[int] = set()  # prefetched and not leased since

    @property
    def num_available(self) -> int:
        """Slots that can be had now: free ones, those of blocks that may go, and prefetches."""
        return self._table.num_free_pages + self.num_idle

    def is_loading(self, blocks: np.ndarray) -> bool:
        """Whether any of ``blocks`` (i32[n]) is still on its way to the device."""
        return bool((self._table.device_state[blocks] == DeviceState.LOADING).any())

    def num_on_device(self, path: np.ndarray) -> int:
        """How many blocks of a path i32[n] from its start have a slot; the rest are on the host."""
        return int(np.count_nonzero(self._table.page[path] != NO_PAGE))

    def usable(self, path: np.ndarray) -> np.ndarray:
        """The part of a path i32[n] that is on the device or can be loaded.

        A copy that is still being written, of a block that has left the device, can not.
        """
        num = self.num_on_device(path)
        return path[: num + self.num_loadable(path[num:])]

    def num_loadable(self, path: np.ndarray) -> int:
        """How many blocks of a path i32[n] from its start have a host copy that is written.

        Copies complete in any order, so a written one may follow one that is still being written.
        """
        is_valid = self._table.host_state[path] == HostState.VALID
        return len(path) if is_valid.all() else int(is_valid.argmin())

    def acquire(self, blocks: np.ndarray, now: float) -> None:
        """Lease indexed blocks i32[n], which have slots."""
        table = self._table
        self.num_idle -= int((table.leases[blocks] == 0).sum())
        table.leases[blocks] += 1
        table.last_use[blocks] = now
        if self._unread:
            for block in self._unread.intersection(blocks.tolist()):
                self._unread.remove(block)
                is_late = bool(table.device_state[block] == DeviceState.LOADING)
                self.num_late += is_late
                self.num_useful += not is_late

    def release(self, blocks: np.ndarray) -> None:
        """Indexed blocks i32[n] of which the last lease has ended."""
        self.num_idle += len(blocks)
        self.offer(blocks)

    def offer(self, blocks: np.ndarray) -> None:
        """Let those of ``blocks`` (i32[n]) that may be evicted go when their turn comes."""
        table = self._table
        able = (table.num_children[blocks] == 0) & (table.leases[blocks] == 0)
        able &= table.device_state[blocks] == DeviceState.VALID
        leaves = blocks[able]
        if len(leaves):
            self._device.offer(leaves.tolist(), self._order(table, leaves).tolist())

    def reorder(self, path: np.ndarray) -> None:
        """The key of a node's blocks i32[n] has changed: order what may go anew."""
        on_device, on_host = self.num_on_device(path), self.num_on_host(path)
        if on_device:
            self.offer(path[on_device - 1 : on_device])
        if on_host:
            self.host.offer(self.host.extents[int(self._table.extent[path[on_host - 1]])])

    def num_on_host(self, path: np.ndarray) -> int:
        """How many blocks of a path i32[n] from its start have a host copy, written or not."""
        return int(np.count_nonzero(self._table.host_state[path] != HostState.NONE))

    def next_victim(self) -> int | None:
        """The block that would leave the device next; None where none may."""
        top = self._device.peek()
        return None if top is None else top[1]

    def evict(self, count: int) -> None:
        """Free ``count`` slots, lowest key of the policy first, leaves first.

        Raises:
            IntegrityError: not that many can go.
        """
        target = self._table.num_free_pages + count
        while (short := target - self._table.num_free_pages) > 0:
            if not self._evict_leaves(short) and not self._cancel_one():
                raise IntegrityError(f"{short} evictable blocks are missing")

    def evict_while(self, count: int, may_go: Callable[[int], bool]) -> None:
        """Free up to ``count`` slots, as long as the next node to lose blocks ``may_go``."""
        while count > 0 and (num := self._evict_leaves(count, may_go)):
            count -= num

    def load(self, blocks: np.ndarray, *, is_prefetch: bool = False) -> None:
        """Bring blocks i32[n] of a path, valid on the host alone, to the device.

        The block before them has a slot already. They count as idle until they are leased.
        """
        table, host = self._table, self.host
        numbers = table.extent[blocks]
        cuts = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
        runs = np.split(blocks, cuts)
        extents = [host.extents[int(table.extent[run[0]])] for run in runs]
        for extent in extents:
            host.pin(extent)  # before the eviction that may want its room
        short = len(blocks) - table.num_free_pages
        if short > 0:
            self.evict(short)
        table.assign_pages(blocks, DeviceState.LOADING)
        table.num_children[blocks[:-1]] += 1
        parent = int(table.parent[blocks[0]])
        if parent != NO_BLOCK:
            table.num_children[parent] += 1
        self.num_idle += len(blocks)
        for run, extent in zip(runs, extents, strict=True):
            load = Load(extent, run, is_prefetch, len(run))
            self._loading.update(dict.fromkeys(run.tolist(), load))
            self.loads.append(load)
        if is_prefetch:
            self.num_prefetched += len(blocks)
            self._unread.update(blocks.tolist())

    def complete(self, load: Load) -> tuple[np.ndarray, np.ndarray]:
        """A load's copies are on the device, beside the pool.

        Returns:
            i32[m] places in the extent that are still wanted, and i32[m] the slots to write them
            to; they are valid from the next step on.
        """
        wanted = np.array([b for b in load.blocks.tolist() if self._loading.get(b) is load], int)
        places = np.flatnonzero(np.isin(load.extent.blocks, wanted))
        self._end(load, wanted.tolist())
        self._table.device_state[wanted] = DeviceState.VALID
        self.num_loaded += len(wanted)
        self.offer(wanted)
        return places.astype(np.int32), self._table.page[load.extent.blocks[places]]

    def prefetches(self) -> list[Load]:
        """Loads under way that no request has asked for, planned or dispatched."""
        return [load for load in dict.fromkeys(self._loading.values()) if load.is_prefetch]

    def is_wanted(self, load: Load) -> bool:
        """Whether anything still waits for a load."""
        return load.num_wanted > 0

    def cancel(self, load: Load) -> int:
        """Give up what no lease holds of a load, from its end; how many slots that freed."""
        table = self._table
        given_up = []
        for block in reversed(load.blocks.tolist()):
            if self._loading.get(block) is not load:
                continue
            if table.leases[block] or table.num_children[block]:
                break
            given_up.append(block)
            parent = self._unlink(block)
            if parent is not None:
                self.offer(np.array([parent], np.int32))
        self._end(load, given_up)
        self.num_idle -= len(given_up)
        gone = np.array(given_up, np.int32)
        self.left.update(table.head[gone].tolist())
        table.drop_pages(gone)
        return len(given_up)

    def offload(self, block: int, *, most: int | None = None, is_leaving: bool = False) -> int:
        """Begin to copy a path to the host, down to ``block``, as far as it has no copy.

        What does not fit the host's budget beside what is needed sooner is left out, from the end.

        Args:
            most: blocks that may be begun now.
            is_leaving: whether the device is about to let go of it.

        Returns:
            How many blocks were begun.
        """
        table, host = self._table, self.host
        path: list[int] = []
        at = block
        while at != NO_BLOCK and table.host_state[at] == HostState.NONE:
            path.append(at)
            at = int(table.parent[at])
        above = None if at == NO_BLOCK else host.extents[int(table.extent[at])]
        if above is not None:
            host.pin(above)
        wanted = np.array(path[::-1], np.int32)
        most = self.offload_budget if most is None else min(most, self.offload_budget)
        num = self._make_host_room(wanted[: max(most, 0)], is_leaving)
        self.offload_budget -= num
        for run in host.cut(wanted[:num]) if num else ():
            extent = host.add(run)
            self.offloads.append(Offload(extent, table.page[run].copy()))
        if above is not None:
            host.unpin(above)
        self.num_offloaded += num
        return num

    def complete_offload(self, extent: Extent, data: Any) -> None:
        """A backup has landed; one that was given up meanwhile is let go."""
        if self.host.extents.get(extent.number) is extent:
            self.host.complete(extent, data)
            away = extent.blocks[self._table.page[extent.blocks] == NO_PAGE]
            self.left.update(self._table.head[away].tolist())

    def lost(self, extent: Extent) -> None:
        """The copies of an extent are none: drop it, and all that continue it.

        No load of them may be in progress.
        """
        if self.host.extents.get(extent.number) is not extent:
            return
        lost = {extent.number}
        doomed = [extent]
        for other in self.host.extents.values():  # a chain's first extent has the lowest number
            above = self.host.before(other)
            if above is not None and above.number in lost:
                lost.add(other.number)
                doomed.append(other)
        for one in reversed(doomed):
            self._drop_extent(one)

    def flush(self) -> None:
        """Drop everything that no lease holds from both tiers."""
        backs_up, self._backs_up = self._backs_up, lambda _table, _block: False
        while self._loading and self._cancel_one():
            pass
        self._evict_leaves(self.num_idle)
        self._backs_up = backs_up
        for extent in sorted(self.host.extents.values(), key=lambda extent: -extent.number):
            if not (extent.num_children or extent.num_pins):
                self._drop_extent(extent)

    def check_integrity(self) -> None:
        """Raise IntegrityError unless both tiers hold prefixes of paths, and counts are right."""
        table = self._table
        indexed = np.flatnonzero(table.head >= 0)
        parents = table.parent[indexed]
        below = indexed[parents != NO_BLOCK]
        above = parents[parents != NO_BLOCK]
        if ((table.page[below] != NO_PAGE) & (table.page[above] == NO_PAGE)).any():
            raise IntegrityError("a block is on the device, and the one before it is not")
        if ((table.host_state[below] != 0) & (table.host_state[above] == 0)).any():
            raise IntegrityError("a block is on the host, and the one before it is not")
        idle = indexed[(table.leases[indexed] == 0) & (table.page[indexed] != NO_PAGE)]
        if len(idle) != self.num_idle:
            raise IntegrityError(f"{len(idle)} blocks can go, {self.num_idle} are counted")
        able = idle[(table.num_children[idle] == 0)]
        able = able[table.device_state[able] == DeviceState.VALID]
        if self._device.items() != set(able.tolist()):
            raise IntegrityError("the leaves that may go are not those on offer")
        if set(np.flatnonzero(table.device_state == DeviceState.LOADING)) != set(self._loading):
            raise IntegrityError("a block is loading that no load brings, or is brought twice")
        for block, load in self._loading.items():
            if table.extent[block] != load.extent.number or not load.extent.num_pins:
                raise IntegrityError(f"block {block} is loading from an extent that may go")
        self.host.check_integrity()

    def _may_leave_device(self, block: int) -> bool:
        one = self._scalars
        return (
            not one.leases[block]
            and not one.num_children[block]
            and one.device_state[block] == DeviceState.VALID
            and one.head[block] != NO_BLOCK
        )

    def _unlink(self, block: int) -> int | None:
        """A block leaves the device; its parent, if that may go now, too."""
        one = self._scalars
        one.device_state[block] = (
            DeviceState.NONE
        )  # its slot is dropped with others', it is no victim again
        if self._unread and block in self._unread:
            self._unread.remove(block)
            self.num_wasted += 1
        parent = one.parent[block]
        if parent == NO_BLOCK:
            return None
        one.num_children[parent] -= 1
        return parent if self._may_leave_device(parent) else None

    def _run_before(self, block: int, most: int) -> list[int]:
        """A leaf, and the blocks before it in its node that would be leaves one by one."""
        one, run = self._scalars, [block]
        head = one.head[block]
        while len(run) < most:
            block = one.parent[block]
            if (
                block == NO_BLOCK
                or one.head[block] != head
                or one.num_children[block] != 1
                or one.leases[block]
                or one.device_state[block] != DeviceState.VALID
            ):
                break
            run.append(block)
        return run

    def _evict_leaves(self, most: int, may_go: Callable[[int], bool] | None = None) -> int:
        """Free up to ``most`` slots of leaves, until one may not go; how many there were."""
        table, one, has_host = self._table, self._scalars, self.host.max_blocks > 0
        victims: list[int] = []
        while len(victims) < most and (block := self.next_victim()) is not None:
            if may_go is not None and not may_go(block):
                break
            self._device.pop()
            # Those before it are likely to follow: their keys are asked for once, and the queue
            # is not asked at all while they go before whatever is in it.
            run = self._run_before(block, most - len(victims))
            keys = self._order(table, np.array(run, np.int32)).tolist() if len(run) > 1 else []
            top = self._device.peek() if keys else None
            following: int | None = block
            for place, at in enumerate(run):
                if place and top is not None and keys[place] > top[0]:
                    break
                if has_host and not one.host_state[at] and self._backs_up(table, at):
                    self.offload(at, is_leaving=True)
                victims.append(at)
                following = self._unlink(at)
            if following is not None:
                self.offer(np.array([following], np.int32))
        if not victims:
            return 0
        gone = np.array(victims, np.int32)
        self.num_idle -= len(gone)
        self.num_evicted += len(gone)
        table.drop_pages(gone)
        # Asked only now: to make room for the last, the host may have dropped the first.
        is_on_host = table.host_state[gone] != HostState.NONE
        self.left.update(table.head[gone[is_on_host]].tolist())
        if not is_on_host.all():
            self._forget(gone[~is_on_host].tolist())
        return len(gone)

    def _cancel_one(self) -> bool:
        """Cancel what no lease holds of the load planned last that has such."""
        loads = dict.fromkeys(self._loading.values())
        return any(self.cancel(load) for load in reversed(loads))

    def _end(self, load: Load, blocks: Sequence[int]) -> None:
        """These blocks of a load are no longer on their way."""
        for block in blocks:
            del self._loading[block]
        load.num_wanted -= len(blocks)
        if blocks and not load.num_wanted:
            self.host.unpin(load.extent)

    def _make_host_room(self, blocks: np.ndarray, is_leaving: bool) -> int:
        """Drop host copies for ``blocks``, none that is needed more; how many of them fit."""
        host = self.host
        if not len(blocks) or not host.max_blocks:
            return 0
        keys = [[float(is_leaving), *key] for key in self._order(self._table, blocks).tolist()]
        while (free := max(host.max_blocks - host.num_blocks, 0)) < len(blocks):
            victim = host.victim()
            if victim is None or not victim[0] < keys[free]:
                return free
            self._drop_extent(victim[1])
        return len(blocks)

    def _drop_extent(self, extent: Extent) -> None:
        self.host.drop(extent)
        gone = extent.blocks[self._table.page[extent.blocks] == NO_PAGE]
        if len(gone):
            self._forget(gone[::-1].tolist())
