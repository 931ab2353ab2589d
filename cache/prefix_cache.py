"""Prefix cache: the index, the block table and the tiers behind one interface, and its leases.

    request ──lease──▶ blocks ──page──▶ pages of the pool ◀─load, offload─▶ host extents
                         ▲  ▲
    tokens ──index───────┘  └──readers── agents and conversations that will read a prefix again

A block is *private* (leased by the one request that writes it, not indexed), *indexed* (found by
its tokens, leased or not) or free. An indexed block without leases stays until its page is needed.
Blocks are then evicted in the order of the policy, each after all blocks that continue it: to the
host if they have a host copy or are worth one, else out of the index.

``PrefixCache`` is the door for sequences, leases and readers; its ``tiers`` is the door for
transfers. Everything else in this package is private to it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, BlockTable, DeviceState
from kvflow_jax.cache.host_tier import HostTier
from kvflow_jax.cache.index import RootKey
from kvflow_jax.cache.integrity import check_cache, child_nodes
from kvflow_jax.cache.next_read import NextRead, ReadKind
from kvflow_jax.cache.node_index import NodeIndex
from kvflow_jax.cache.policy import EvictionOrder, lru
from kvflow_jax.cache.residency import Residency
from kvflow_jax.cache.reuse_tracker import ReuseTracker
from kvflow_jax.cache.tiers import BlockRef, Tiers
from kvflow_jax.errors import IntegrityError


def has_reader(table: BlockTable, block: int) -> bool:
    """Return whether a known reader will read the block again: the offload rule of KVFlow."""
    return bool(table.next_read[table.head[block], 0] != ReadKind.SUFFIX)


def every_block(table: BlockTable, block: int) -> bool:
    """Return True: the offload rule of hierarchical caches."""
    return True


class Lease:
    """Refcounted handle on the blocks of a request, in sequence order. Released exactly once.

    Attributes:
        root: namespace of the sequence in the index.
        blocks: i32[num_blocks], each with a page.
        num_indexed: how many leading blocks are indexed.
    """

    __slots__ = ("_released", "blocks", "num_indexed", "root")

    def __init__(self, root: RootKey, blocks: np.ndarray) -> None:
        self.root = root
        self.blocks = blocks
        self.num_indexed = len(blocks)
        self._released = False

    def __len__(self) -> int:
        return len(self.blocks)


class PathState(NamedTuple):
    """Where the blocks of a path are; each number counts leading blocks.

    Attributes:
        num_valid: valid on the device.
        num_on_device: with a page, valid or loading.
        num_usable: on the device, or on the host so that they can be loaded.
    """

    num_valid: int
    num_on_device: int
    num_usable: int


class PrefixCache:
    """Cache that shares KV blocks between all sequences with a common token prefix.

    Args:
        num_pages: usable pages of the pool, without its null page.
        page_size: tokens of a block.
        order: the eviction policy, of both tiers.
        num_host_blocks: budget of the host tier.
        extent_sizes: lengths of host extents in blocks, ascending from 1.
        should_offload: (table, block) -> whether an evicted block is worth a host copy.

    Attributes:
        tiers: what may be loaded and offloaded.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        order: EvictionOrder = lru,
        *,
        num_host_blocks: int = 0,
        extent_sizes: Sequence[int] = (1,),
        should_offload: Callable[[BlockTable, int], bool] = has_reader,
    ) -> None:
        self.page_size = page_size
        self._table = BlockTable(num_pages + num_host_blocks, num_pages)
        self._nodes = NodeIndex(self._table, page_size)
        self._readers = ReuseTracker(self._table)
        host = HostTier(self._table, order, num_host_blocks, extent_sizes)
        self._residency = Residency(self._table, order, host, should_offload, self._forget)
        self.tiers = Tiers(self._table, self._residency, self._nodes, self._readers)
        self._leases: set[Lease] = set()

    @property
    def num_pages(self) -> int:
        """Usable pages of the pool."""
        return self._table.num_pages

    @property
    def num_block_ids(self) -> int:
        """Exclusive bound of the ids of blocks."""
        return len(self._table.page)

    @property
    def num_available(self) -> int:
        """Pages that can be allocated now: free pages and those of evictable blocks."""
        return self._residency.num_available

    @property
    def num_idle(self) -> int:
        """Blocks on the device that are indexed and not leased."""
        return self.num_available - self._table.num_free_pages

    @property
    def num_leased(self) -> int:
        """Blocks that are leased."""
        return self._table.num_pages - self.num_available

    @property
    def num_indexed(self) -> int:
        """Blocks in the index, on the device or the host."""
        return self._nodes.num_blocks

    def match(self, root: RootKey, tokens: np.ndarray) -> np.ndarray:
        """Return the blocks of the longest cached prefix of ``tokens``.

        Args:
            tokens: i32[num_tokens]. The index compares bytes: another dtype matches nothing.

        Returns:
            i32[num_blocks]: first the blocks with a page, then the host-only ones.
        """
        return self._nodes.index.match(root, tokens)

    def state_of(self, path: np.ndarray) -> PathState:
        """Return where the blocks of a path (i32[n], the first ones of a match) are."""
        num_on_device = self._residency.num_on_device(path)
        is_valid = self._table.device_state[path[:num_on_device]] == DeviceState.VALID
        return PathState(
            num_valid=num_on_device if is_valid.all() else int(is_valid.argmin()),
            num_on_device=num_on_device,
            num_usable=num_on_device + self._residency.num_loadable(path[num_on_device:]),
        )

    def has_room(
        self, path: np.ndarray, num_blocks: int, *, num_reserved: int, tenant: str = ""
    ) -> bool:
        """Return whether a lease on a path (i32[n], cached) can be grown to ``num_blocks`` blocks.

        Args:
            num_reserved: pages that must be available afterwards.
            tenant: of the lease.
        """
        return self.num_missing(path, num_blocks, num_reserved=num_reserved, tenant=tenant) <= 0

    def num_missing(
        self, path: np.ndarray, num_blocks: int, *, num_reserved: int, tenant: str = ""
    ) -> int:
        """Return how many pages ``has_room`` lacks; at most 0 if it lacks none."""
        on_device = path[: self._residency.num_on_device(path)]
        # Blocks of the path without a lease count as available, and no longer will.
        num_unleased = int((self._table.leases[on_device] == 0).sum())
        num_needed = num_blocks - len(on_device) + num_unleased + num_reserved
        if num_needed <= self._table.num_free_pages:
            return num_needed - self._table.num_free_pages
        return num_needed - self._residency.num_available_to(tenant)

    def num_unshared(self, lease: Lease) -> int:
        """Return how many blocks of a lease no other lease includes."""
        return int((self._table.leases[lease.blocks] == 1).sum())

    def lease(self, root: RootKey, blocks: np.ndarray, now: float) -> Lease:
        """Lease indexed ``blocks`` (a match, i32[n]): they are not evicted before the release.

        Host-only blocks are loaded; the caller checks that there is room (``num_available``).
        """
        num_on_device = self._residency.num_on_device(blocks)
        lease = Lease(root, blocks.copy())
        tenant = self._residency.rooms.use(root.tenant, now)
        self._residency.ages.note_reused(blocks[:num_on_device], now)
        self._residency.acquire(blocks[:num_on_device], now)
        if num_on_device < len(blocks):
            self._residency.load(blocks[num_on_device:], now, tenant=tenant)
            self._residency.acquire(blocks[num_on_device:], now)
        self._leases.add(lease)
        return lease

    def grow(self, lease: Lease, num_blocks: int, now: float) -> bool:
        """Add ``num_blocks`` new private blocks to the lease, evicting others to make room.

        Returns:
            False if fewer pages are available; nothing has changed then.
        """
        num_short = num_blocks - self._table.num_free_pages
        rooms = self._residency.rooms
        tenant = rooms.index_of(lease.root.tenant)
        assert tenant is not None  # it has a lease
        if num_short > 0:
            if num_blocks > self._residency.num_available_to(lease.root.tenant):
                return False
            self._residency.evict(num_short, now, tenant)
        private = self._table.allocate(num_blocks, now, tenant)
        self._table.leases[private] += 1
        lease.blocks = np.concatenate([lease.blocks, private])
        return True

    def evict(self, num_blocks: int, now: float) -> None:
        """Free pages of ``num_blocks`` blocks, in the order of the policy; none if it is below 1.

        Raises:
            IntegrityError: fewer pages are available.
        """
        if num_blocks > 0:
            self._residency.evict(num_blocks, now)

    def next_victim(self) -> int | None:
        """Return the block that would be evicted next; None if none can be."""
        return self._residency.next_victim()

    def deduplicate(
        self, lease: Lease, tokens: np.ndarray, now: float, *, num_written: int
    ) -> None:
        """Replace private blocks of the lease by indexed blocks of the same tokens.

        The duplicates are freed: call between steps, when no step yet to be dispatched uses their
        pages. An indexed block that is host-only takes over the page of its duplicate instead.

        Args:
            tokens: i32[num_tokens], the sequence of the lease.
            num_written: leading blocks of the lease that dispatched steps have written.
        """
        matched = self.match(lease.root, tokens)
        start, end = lease.num_indexed, min(len(matched), len(lease))
        table = self._table
        for i in range(start, end):
            original, duplicate = int(matched[i]), int(lease.blocks[i])
            state = table.device_state[original]
            if state == DeviceState.LOADING or (state == DeviceState.NONE and i >= num_written):
                end = i
                break
            if state == DeviceState.NONE:
                # No dispatched step uses a page of the original: it has none.
                table.move_page(duplicate, original)
                parent = int(table.parent[original])
                if parent != NO_BLOCK:
                    table.num_children[parent] += 1
                table.leases[original] += 1
                table.last_use[original] = now
            else:
                self._residency.acquire(matched[i : i + 1], now)
            lease.blocks[i] = original
            table.leases[duplicate] -= 1
            if not table.leases[duplicate]:
                table.free(np.array([duplicate], np.int32))
        lease.num_indexed = max(start, end)

    def publish(self, lease: Lease, tokens: np.ndarray) -> None:
        """Index the blocks of the lease that ``tokens`` (i32[num_tokens]) fill completely.

        Nothing happens if other blocks are indexed for the same tokens: the duplicates stay private
        until ``deduplicate``. The step that writes the blocks need not be dispatched yet.
        """
        table, page_size, start = self._table, self.page_size, lease.num_indexed
        num_full = min(len(tokens) // page_size, len(lease))
        tokens = tokens[: num_full * page_size]
        if num_full <= start or len(self.match(lease.root, tokens)) > start:
            return
        before = int(lease.blocks[start - 1]) if start else NO_BLOCK
        # The prefix of a reader ends with a node, so its suffixes are nodes of their own.
        may_grow = before == NO_BLOCK or not self._readers.has_reader_at(int(table.head[before]))
        split = self._nodes.insert(
            lease.root, tokens, lease.blocks[:num_full], start, may_grow=may_grow
        )
        if split is not None:
            self._readers.split(*split)
        lease.num_indexed = num_full

    def unpublish(self, lease: Lease, num_indexed: int) -> np.ndarray:
        """Remove from the index the blocks of the lease past its first ``num_indexed``.

        For a step that failed: the content of these blocks is invalid. Blocks that continue them
        were published by the same step, so unpublish in the reverse order of publishing.

        Returns:
            i32[n], the removed blocks. Every lease on one of them is void.

        Raises:
            IntegrityError: an indexed block continues one of them.
        """
        tail = lease.blocks[num_indexed : lease.num_indexed]
        if (self._table.num_children[tail] != (np.arange(len(tail)) < len(tail) - 1)).any():
            raise IntegrityError("cannot unpublish blocks that others continue")
        if len(tail):
            before = int(self._table.parent[tail[0]])
            if before != NO_BLOCK:
                self._table.num_children[before] -= 1
            self._table.num_children[tail] = 0
            self._remove_from_index(tail[::-1])
        lease.num_indexed = min(lease.num_indexed, num_indexed)
        return tail

    def release(self, lease: Lease, now: float) -> None:
        """Release the lease: private blocks are freed, indexed ones become evictable.

        Raises:
            IntegrityError: the lease was released before.
        """
        if lease._released:
            raise IntegrityError("a lease must not be released twice")
        lease._released = True
        self._leases.remove(lease)
        table, blocks = self._table, lease.blocks
        table.leases[blocks] -= 1
        indexed = table.head[blocks] != NO_BLOCK
        table.free(blocks[~indexed & (table.leases[blocks] == 0)])
        kept = blocks[indexed]
        table.last_use[kept] = now
        self._residency.release(kept[table.leases[kept] == 0])

    def num_loading(self, lease: Lease) -> int:
        """Return how many blocks of a lease are still being loaded."""
        return int((self._table.device_state[lease.blocks] == DeviceState.LOADING).sum())

    def pages(self, lease: Lease, num_blocks: int) -> np.ndarray:
        """Return the pages of the first blocks of a lease, i32[num_blocks]."""
        pages: np.ndarray = self._table.page[lease.blocks[:num_blocks]]
        return pages

    def generations(self, blocks: np.ndarray) -> np.ndarray:
        """Return how often the id of each block was freed: u32[n] for i32[n]."""
        generations: np.ndarray = self._table.generation[blocks]
        return generations

    def end_of(self, lease: Lease) -> BlockRef | None:
        """Return the last indexed block of a lease; None if it has none."""
        return self._ref(int(lease.blocks[lease.num_indexed - 1])) if lease.num_indexed else None

    # Readers.

    def set_reader(
        self, reader: Hashable, root: RootKey, tokens: np.ndarray, next_read: NextRead
    ) -> BlockRef | None:
        """Record that a reader will read ``tokens`` again, as far as they are indexed.

        Args:
            reader: an agent or a conversation; an earlier prefix of it is replaced.
            tokens: i32[num_tokens].
            next_read: its next read.

        Returns:
            The last indexed block. If none is indexed, the reader is removed.
        """
        matched = self.match(root, tokens[: len(tokens) // self.page_size * self.page_size])
        if not len(matched):
            self.remove_reader(reader)
            return None
        end = int(matched[-1])
        split = self._nodes.split_after(end)
        if split is not None:
            self._readers.split(*split)
        self._readers.attach(reader, int(self._table.head[end]), next_read)
        self._reorder_changed()
        return self._ref(end)

    def set_next_read(self, reader: Hashable, next_read: NextRead) -> None:
        """Update the next read of a reader; no effect if it has no prefix."""
        self._readers.set_next_read(reader, next_read)
        self._reorder_changed()

    def remove_reader(self, reader: Hashable) -> None:
        """Remove a reader; no effect if it has no prefix."""
        self._readers.detach(reader)
        self._reorder_changed()

    def next_read_of(self, block: int) -> NextRead:
        """Return the next read of an indexed block."""
        return self._readers.next_read_of(int(self._table.head[block]))

    def flush(self, now: float) -> int:
        """Drop every unleased block from both tiers, and return how many were dropped."""
        before = self.num_indexed
        self._residency.flush(now)
        return before - self.num_indexed

    def check_integrity(self) -> None:
        """Raise IntegrityError unless index, table, leases and tiers agree with each other."""
        index, leased = self._nodes.index, [lease.blocks for lease in self._leases]
        check_cache(index, self._table, self._nodes.records(), leased)
        self._readers.check_integrity(child_nodes(index, self._table))
        self._residency.check_integrity()
        self._nodes.check_integrity()

    def _ref(self, block: int) -> BlockRef:
        return BlockRef(block, int(self._table.generation[block]))

    def _reorder_changed(self) -> None:
        """Update the eviction queues for nodes whose next read has changed."""
        changed = self._readers.drain_changed()
        if changed:
            for head in changed:
                self._residency.reorder(self._nodes.blocks_of(head))
            self.tiers.note_changed(changed)

    def _forget(self, blocks: np.ndarray) -> None:
        """Remove blocks i32[n] that are on neither tier, each after those that continue it."""
        self._remove_from_index(blocks)
        self._table.free(blocks)

    def _remove_from_index(self, blocks: np.ndarray) -> None:
        """Remove blocks i32[n] from the index: a tail of each node, children before parents."""
        self._readers.drop(self._nodes.remove(blocks))
        self._nodes.clear_columns(blocks)
        self._reorder_changed()
