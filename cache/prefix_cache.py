"""Prefix cache: the index, the block table and the tiers behind one interface, and its leases.

    request ──lease──▶ blocks ──page──▶ pages of the pool ◀─load, offload─▶ host extents
                         ▲  ▲
    tokens ──index───────┘  └──readers── agents and conversations that will read a prefix again

A block is *private* (leased by the one request that writes it, not indexed), *indexed* (found by
its tokens, leased or not) or free. An indexed block without leases stays until its page is needed.
Blocks are then evicted in the order of the policy, each after all blocks that continue it: to the
host if they have a host copy or are worth one, else out of the index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, NO_PAGE, SUFFIX, BlockTable, DeviceState
from kvflow_jax.cache.host_tier import HostTier
from kvflow_jax.cache.index import NO_BLOCKS, RadixIndex, RootKey
from kvflow_jax.cache.integrity import check_cache, child_nodes
from kvflow_jax.cache.policy import EvictionOrder, lru
from kvflow_jax.cache.residency import Residency
from kvflow_jax.cache.reuse_tracker import ReuseTracker
from kvflow_jax.errors import IntegrityError


def has_reader(table: BlockTable, block: int) -> bool:
    """Return whether a known reader will read the block again: the offload rule of KVFlow."""
    return bool(table.steps[table.head[block]] != SUFFIX)


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


class _NodeRecord:
    """Record of a node of the index, by the node's first block.

    Attributes:
        key: its first page, as the index keys it.
        root: its root key if it is a top node, else None.
        blocks: i32[n].
    """

    __slots__ = ("blocks", "key", "root")

    def __init__(self, key: bytes, root: RootKey | None, blocks: np.ndarray) -> None:
        self.key = key
        self.root = root
        self.blocks = blocks


class PrefixCache:
    """Cache that shares KV blocks between all sequences with a common token prefix.

    Args:
        num_pages: usable pages of the pool, without its null page.
        page_size: tokens of a block.
        order: the eviction policy, of both tiers.
        num_host_blocks: budget of the host tier.
        extent_sizes: lengths of host extents in blocks, ascending from 1.
        should_offload: (table, block) -> whether an evicted block is worth a host copy.
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
        self.index = RadixIndex(page_size)
        self.table = BlockTable(num_pages + num_host_blocks, num_pages)
        self.reuse_tracker = ReuseTracker(self.table)
        host = HostTier(self.table, order, num_host_blocks, extent_sizes)
        self.residency = Residency(self.table, order, host, should_offload, self._forget)
        self._leases: set[Lease] = set()
        self._num_indexed = 0
        self._nodes: dict[int, _NodeRecord] = {}
        self._changed_nodes: set[int] = set()  # nodes whose steps have changed, until taken

    @property
    def num_available(self) -> int:
        """Pages that can be allocated now: free pages and those of evictable blocks."""
        return self.residency.num_available

    @property
    def num_leased(self) -> int:
        """Blocks that are leased."""
        return self.table.num_pages - self.num_available

    @property
    def num_indexed(self) -> int:
        """Blocks in the index, on the device or the host."""
        return self._num_indexed

    def match(self, root: RootKey, tokens: np.ndarray) -> np.ndarray:
        """Return the blocks of the longest cached prefix of ``tokens``.

        Args:
            tokens: i32[num_tokens]. The index compares bytes: another dtype matches nothing.

        Returns:
            i32[num_blocks]: first the blocks with a page, then the host-only ones.
        """
        return self.index.match(root, tokens)

    def lease(self, root: RootKey, blocks: np.ndarray, now: float) -> Lease:
        """Lease indexed ``blocks`` (a match, i32[n]): they are not evicted before the release.

        Host-only blocks are loaded; the caller checks that there is room (``num_available``).
        """
        num_on_device = self.residency.num_on_device(blocks)
        lease = Lease(root, blocks.copy())
        self.residency.acquire(blocks[:num_on_device], now)
        if num_on_device < len(blocks):
            self.residency.load(blocks[num_on_device:])
            self.residency.acquire(blocks[num_on_device:], now)
        self._leases.add(lease)
        return lease

    def grow(self, lease: Lease, num_blocks: int, now: float) -> bool:
        """Add ``num_blocks`` new private blocks to the lease, evicting others to make room.

        Returns:
            False if fewer pages are available; nothing has changed then.
        """
        if num_blocks > self.num_available:
            return False
        short = num_blocks - self.table.num_free_pages
        if short > 0:
            self.residency.evict(short)
        private = self.table.allocate(num_blocks, now)
        self.table.leases[private] += 1
        lease.blocks = np.concatenate([lease.blocks, private])
        return True

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
        table = self.table
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
                self.residency.acquire(matched[i : i + 1], now)
            lease.blocks[i] = original
            table.leases[duplicate] -= 1
            if not table.leases[duplicate]:
                table.free(np.array([duplicate], np.int32))
        lease.num_indexed = max(start, end)

    def publish(self, lease: Lease, tokens: np.ndarray, now: float) -> None:
        """Index the blocks of the lease that ``tokens`` (i32[num_tokens]) fill completely.

        Nothing happens if other blocks are indexed for the same tokens: the duplicates stay private
        until ``deduplicate``. The step that writes the blocks need not be dispatched yet.
        """
        table, page_size, start = self.table, self.page_size, lease.num_indexed
        num_full = min(len(tokens) // page_size, len(lease))
        tokens = tokens[: num_full * page_size]
        if num_full <= start or len(self.match(lease.root, tokens)) > start:
            return
        before = int(lease.blocks[start - 1]) if start else NO_BLOCK
        # The prefix of a reader ends with a node, so its suffixes are nodes of their own.
        may_grow = before == NO_BLOCK or not self.reuse_tracker.has_reader_at(
            int(table.head[before])
        )
        insertion = self.index.insert(
            lease.root, tokens, lease.blocks[:num_full], may_grow=may_grow
        )
        if not np.array_equal(insertion.existing, lease.blocks[:start]):
            raise IntegrityError("an indexed block of a lease is no longer in the index")
        self.index = insertion.index
        if insertion.split is not None:
            self._record_split(insertion.split.blocks, insertion.split.tokens)
        new = lease.blocks[start:num_full].copy()
        table.depth[new] = np.arange(start, num_full)
        table.parent[new[1:]] = new[:-1]
        table.parent[new[0]] = before
        table.num_children[new[:-1]] = 1
        if before != NO_BLOCK:
            table.num_children[before] += 1
        if insertion.is_grown:
            head = int(table.head[before])
            table.head[new] = head
            node = self._nodes[head]
            node.blocks = np.concatenate([node.blocks, new])
        else:
            root = lease.root if before == NO_BLOCK else None
            self._record_node(new, tokens[start * page_size :], root)
        self._num_indexed += len(new)
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
        if (self.table.num_children[tail] != (np.arange(len(tail)) < len(tail) - 1)).any():
            raise IntegrityError("cannot unpublish blocks that others continue")
        if len(tail):
            before = int(self.table.parent[tail[0]])
            if before != NO_BLOCK:
                self.table.num_children[before] -= 1
            self.table.num_children[tail] = 0
            self._remove_from_index(tail[::-1].tolist())
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
        table, blocks = self.table, lease.blocks
        table.leases[blocks] -= 1
        indexed = table.head[blocks] != NO_BLOCK
        table.free(blocks[~indexed & (table.leases[blocks] == 0)])
        kept = blocks[indexed]
        table.last_use[kept] = now
        self.residency.release(kept[table.leases[kept] == 0])

    def set_reader(self, reader: Hashable, root: RootKey, tokens: np.ndarray, steps: float) -> int:
        """Record that a reader will read ``tokens`` again, as far as they are indexed.

        Args:
            reader: an agent or a conversation; an earlier prefix of it is replaced.
            tokens: i32[num_tokens].
            steps: its steps-to-execution; see ``reuse_tracker``.

        Returns:
            The number of indexed blocks. If it is 0, the reader is removed.
        """
        matched = self.match(root, tokens[: len(tokens) // self.page_size * self.page_size])
        if not len(matched):
            self.remove_reader(reader)
            return 0
        head = int(self.table.head[matched[-1]])
        num_in_node = int(np.count_nonzero(self.table.head[matched] == head))
        if num_in_node < len(self._nodes[head].blocks):
            node_root, path = self._path(head)
            self.index, lower = self.index.split(node_root, path, num_in_node)
            self._record_split(lower.blocks, lower.tokens)
        self.reuse_tracker.set(reader, head, steps)
        self._reorder_changed()
        return len(matched)

    def set_steps(self, reader: Hashable, steps: float) -> None:
        """Update the steps-to-execution of a reader; no effect if it has no prefix."""
        self.reuse_tracker.set_steps(reader, steps)
        self._reorder_changed()

    def remove_reader(self, reader: Hashable) -> None:
        """Remove a reader; no effect if it has no prefix."""
        self.reuse_tracker.remove(reader)
        self._reorder_changed()

    def steps_of(self, block: int) -> float:
        """Return the steps-to-execution of an indexed block."""
        return float(self.table.steps[self.table.head[block]])

    def take_changed_nodes(self) -> set[int]:
        """Return the nodes whose steps changed or of which a block became host-only.

        Only changes since the last call are returned.
        """
        changed = self._changed_nodes | self.residency.host_only_nodes
        self._changed_nodes, self.residency.host_only_nodes = set(), set()
        return changed & self._nodes.keys()

    def loadable_blocks(self, head: int) -> np.ndarray:
        """Return the host-only blocks of the path to the end of a node that can be loaded.

        Returns:
            i32[n], in path order; empty if the node has left the index. A block whose copy is still
            being written ends them.
        """
        runs: list[np.ndarray] = []
        table = self.table
        while head in self._nodes:
            blocks = self._nodes[head].blocks
            runs.append(blocks[table.page[blocks] == NO_PAGE])
            parent = int(table.parent[head])
            if parent == NO_BLOCK or len(runs[-1]) < len(blocks):
                break
            head = int(table.head[parent])
        path = np.concatenate(runs[::-1]) if runs else NO_BLOCKS
        return path[: self.residency.num_loadable(path)]

    def last_block_of(self, head: int) -> int | None:
        """Return the last block of a node; None if the node has left the index."""
        node = self._nodes.get(head)
        return None if node is None else int(node.blocks[-1])

    def flush(self) -> int:
        """Drop every unleased block from both tiers, and return how many were dropped."""
        before = self._num_indexed
        self.residency.flush()
        return before - self._num_indexed

    def check_integrity(self) -> None:
        """Raise IntegrityError unless index, table, leases and tiers agree with each other."""
        check_cache(self.index, self.table, self._nodes, [lease.blocks for lease in self._leases])
        self.reuse_tracker.check_integrity(child_nodes(self.index, self.table))
        self.residency.check_integrity()
        if np.count_nonzero(self.table.head != NO_BLOCK) != self._num_indexed:
            raise IntegrityError("the count of indexed blocks is wrong")

    def _reorder_changed(self) -> None:
        """Update the eviction queues for nodes whose steps have changed."""
        changed = self.reuse_tracker.changed
        for head in changed:
            self.residency.reorder(self._nodes[head].blocks)
        self._changed_nodes |= changed
        changed.clear()

    def _record_node(self, blocks: np.ndarray, tokens: np.ndarray, root: RootKey | None) -> None:
        """Record a new node of ``blocks``; ``tokens`` begin with its first page."""
        first = int(blocks[0])
        self.table.head[blocks] = first
        self._nodes[first] = _NodeRecord(tokens[: self.page_size].tobytes(), root, blocks)

    def _record_split(self, lower: np.ndarray, tokens: np.ndarray) -> None:
        """Record that the end of a node, ``lower`` (i32[n]), is now a node of its own."""
        head = int(self.table.head[lower[0]])
        upper = self._nodes[head]
        upper.blocks = upper.blocks[: len(upper.blocks) - len(lower)]
        self._record_node(lower, tokens, None)
        self.reuse_tracker.split(head, int(lower[0]))

    def _forget(self, blocks: list[int]) -> None:
        """Remove blocks that are on neither tier, each after those that continue it."""
        self._remove_from_index(blocks)
        self.table.free(np.array(blocks, np.int32))

    def _remove_from_index(self, blocks: list[int]) -> None:
        """Remove blocks from the index: a tail of each node, children before their parents."""
        table = self.table
        ids = np.array(blocks, np.int32)
        # Leaves under one parent are removed together, so that its path is copied once.
        counts = Counter(table.head[ids].tolist())
        parents = table.parent[list(counts)]
        parent_heads = np.where(parents == NO_BLOCK, NO_BLOCK, table.head[parents]).tolist()
        # By parent node, or by root key for top nodes: blocks to keep, by the key of each leaf.
        lengths_under: dict[int | RootKey | None, dict[bytes, int]] = {}
        emptied: list[tuple[int, int]] = []
        for (head, count), parent, parent_head in zip(
            counts.items(), parents.tolist(), parent_heads, strict=True
        ):
            node = self._nodes[head]
            num_kept = len(node.blocks) - count
            if num_kept:
                node.blocks = node.blocks[:num_kept]
            else:
                emptied.append((head, parent))
            above = node.root if parent_head == NO_BLOCK else parent_head
            lengths = lengths_under.get(above)
            if lengths is None:
                lengths = lengths_under[above] = {}
            lengths[node.key] = num_kept
        cuts = [
            (*(self._path(above) if isinstance(above, int) else (above, ())), lengths)
            for above, lengths in lengths_under.items()
        ]
        # Deepest parents first.
        for root, path, lengths in sorted(cuts, key=lambda cut: -len(cut[1])):
            self.index = self.index.prune(root, path, lengths)
        # Children come before their parents, so each node is dropped without children.
        for head, parent in emptied:
            del self._nodes[head]
            self.reuse_tracker.drop(head, parent)
        table.head[ids] = table.parent[ids] = NO_BLOCK
        self._num_indexed -= len(blocks)
        if self.reuse_tracker.changed:
            self._reorder_changed()

    def _path(self, head: int) -> tuple[RootKey, tuple[bytes, ...]]:
        """Return the path of a node: its root, and the first pages of the nodes down to it."""
        nodes, table = self._nodes, self.table
        node = nodes[head]
        path = [node.key]
        while node.root is None:
            head = int(table.head[table.parent[head]])
            node = nodes[head]
            path.append(node.key)
        return node.root, tuple(path[::-1])
