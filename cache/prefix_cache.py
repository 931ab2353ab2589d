"""The prefix cache: index, block table and tiers as one thing, and who holds what.

    request ──lease──▶ blocks ──slot──▶ pages of the pool ◀─load, backup─▶ host extents
                         ▲  ▲
    tokens ──index───────┘  └──anchors── agents and conversations that will read a prefix again

A block is *private* (leased by the one request that writes it, not indexed), *indexed* (found by
tokens, leased or not) or free. An indexed block without leases stays until room is needed; then
blocks go in the order of the eviction policy, each after all that continue it: to the host, where
they have a copy or are worth one, or out of the index.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, NO_PAGE, SUFFIX, BlockTable, DeviceState
from kvflow_jax.cache.host_tier import HostTier
from kvflow_jax.cache.index import NO_BLOCKS, RadixIndex, RootKey
from kvflow_jax.cache.integrity import check_cache, nodes_below
from kvflow_jax.cache.policy import EvictionOrder, lru
from kvflow_jax.cache.residency import Residency
from kvflow_jax.cache.reuse_tracker import ReuseTracker
from kvflow_jax.errors import IntegrityError


def has_reader(table: BlockTable, block: int) -> bool:
    """Whether somebody is known to read a block again: KVFlow's rule for host copies."""
    return bool(table.steps[table.head[block]] != SUFFIX)


def everything(table: BlockTable, block: int) -> bool:
    """Hierarchical caches' rule for host copies."""
    return True


class Lease:
    """The blocks a request holds, in sequence order. Released exactly once.

    Attributes:
        blocks: i32[num_blocks], each with a device slot.
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


class _Node:
    """Facts of a node of the index, kept by its first block.

    Attributes:
        key: its first page, as the index keys it.
        root: where it is a top node, else None.
        blocks: i32[n].
    """

    __slots__ = ("blocks", "key", "root")

    def __init__(self, key: bytes, root: RootKey | None, blocks: np.ndarray) -> None:
        self.key = key
        self.root = root
        self.blocks = blocks


class PrefixCache:
    """Shares KV blocks between all sequences that begin with the same tokens.

    Args:
        num_pages: usable pages of the pool (its null page not counted).
        page_size: tokens of a block.
        order: the eviction policy, of both tiers.
        num_host_blocks: budget of the host tier.
        extent_sizes: lengths of host extents, blocks, ascending from 1.
        backs_up: which blocks are worth a host copy.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        order: EvictionOrder = lru,
        *,
        num_host_blocks: int = 0,
        extent_sizes: Sequence[int] = (1,),
        backs_up: Callable[[BlockTable, int], bool] = has_reader,
    ) -> None:
        self.page_size = page_size
        self.index = RadixIndex(page_size)
        self.table = BlockTable(num_pages + num_host_blocks, num_pages)
        self.reuse_tracker = ReuseTracker(self.table)
        host = HostTier(self.table, order, num_host_blocks, extent_sizes)
        self.residency = Residency(self.table, order, host, backs_up, self._forget)
        self._leases: set[Lease] = set()
        self._num_indexed = 0
        self._nodes: dict[int, _Node] = {}
        self._moved: set[int] = set()  # nodes whose steps have changed since somebody asked

    @property
    def num_available(self) -> int:
        """Slots that can be had now: free ones and those of blocks that can go."""
        return self.residency.num_available

    @property
    def num_leased(self) -> int:
        """Blocks that some lease holds."""
        return self.table.num_pages - self.num_available

    @property
    def num_indexed(self) -> int:
        """Blocks in the index, on the device or the host."""
        return self._num_indexed

    def match(self, root: RootKey, tokens: np.ndarray) -> np.ndarray:
        """Blocks i32[n] of the longest cached prefix of ``tokens`` (i32[num_tokens]).

        First those with a device slot, then those that are on the host alone.
        """
        return self.index.match(root, tokens)

    def lease(self, root: RootKey, blocks: np.ndarray, now: float) -> Lease:
        """Hold indexed ``blocks`` (a match, i32[n]) so that they stay until released.

        Those on the host alone are loaded: there must be room for them (``num_available``).
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
        """Add fresh private blocks to the lease, evicting others for room.

        Returns:
            False, and nothing has changed, where not that many can be had.
        """
        if num_blocks > self.num_available:
            return False
        short = num_blocks - self.table.num_free_pages
        if short > 0:
            self.residency.evict(short)
        fresh = self.table.allocate(num_blocks, now)
        self.table.leases[fresh] += 1
        lease.blocks = np.concatenate([lease.blocks, fresh])
        return True

    def adopt(self, lease: Lease, tokens: np.ndarray, now: float, *, num_written: int) -> None:
        """Put blocks that others have indexed since in the place of the lease's private ones.

        The copies are freed: call between steps, when no step still to be dispatched names their
        pages. An indexed block that is on the host alone takes over the page of its copy instead.

        Args:
            tokens: i32[num_tokens], the sequence of the lease.
            num_written: leading blocks of the lease that dispatched steps have written.
        """
        matched = self.match(lease.root, tokens)
        start, end = lease.num_indexed, min(len(matched), len(lease))
        table = self.table
        for at in range(start, end):
            original, copy = int(matched[at]), int(lease.blocks[at])
            state = table.device_state[original]
            if state == DeviceState.LOADING or (state == DeviceState.NONE and at >= num_written):
                end = at
                break
            if state == DeviceState.NONE:
                # No step has named the original's page: it has none.
                table.move_page(copy, original)
                parent = int(table.parent[original])
                if parent != NO_BLOCK:
                    table.num_children[parent] += 1
                table.leases[original] += 1
                table.last_use[original] = now
            else:
                self.residency.acquire(matched[at : at + 1], now)
            lease.blocks[at] = original
            table.leases[copy] -= 1
            if not table.leases[copy]:
                table.free(np.array([copy], np.int32))
        lease.num_indexed = max(start, end)

    def publish(self, lease: Lease, tokens: np.ndarray, now: float) -> None:
        """Index the blocks of the lease that ``tokens`` (i32[num_tokens]) fill whole.

        Where others have indexed the same tokens, nothing happens: the lease's copies stay its own
        until it adopts theirs. The step that writes them may not be dispatched yet.
        """
        table, page, start = self.table, self.page_size, lease.num_indexed
        num_full = min(len(tokens) // page, len(lease))
        tokens = tokens[: num_full * page]
        if num_full <= start or len(self.match(lease.root, tokens)) > start:
            return
        before = int(lease.blocks[start - 1]) if start else NO_BLOCK
        # What an reader reads again ends with a node: its suffixes are nodes of their own.
        may_grow = before == NO_BLOCK or not self.reuse_tracker.holds(int(table.head[before]))
        done = self.index.insert(lease.root, tokens, lease.blocks[:num_full], may_grow=may_grow)
        if not np.array_equal(done.existing, lease.blocks[:start]):
            raise IntegrityError("indexed blocks of a lease have left the index")
        self.index = done.index
        if done.split is not None:
            self._note_split(done.split.blocks, done.split.tokens)
        new = lease.blocks[start:num_full].copy()
        table.depth[new] = np.arange(start, num_full)
        table.parent[new[1:]] = new[:-1]
        table.parent[new[0]] = before
        table.num_children[new[:-1]] = 1
        if before != NO_BLOCK:
            table.num_children[before] += 1
        if done.is_grown:
            head = int(table.head[before])
            table.head[new] = head
            node = self._nodes[head]
            node.blocks = np.concatenate([node.blocks, new])
        else:
            root = lease.root if before == NO_BLOCK else None
            self._note_node(new, tokens[start * page :], root)
        self._num_indexed += len(new)
        lease.num_indexed = num_full

    def retract(self, lease: Lease, num_indexed: int) -> np.ndarray:
        """Take back from the index what the lease published past its first ``num_indexed`` blocks.

        For a step that failed: those blocks hold nothing true. What continues them was published
        by the same step, so retract in the reverse order of publishing.

        Returns:
            i32[n], the blocks taken back. Every lease that holds one of them is void.
        """
        tail = lease.blocks[num_indexed : lease.num_indexed]
        if (self.table.num_children[tail] != (np.arange(len(tail)) < len(tail) - 1)).any():
            raise IntegrityError("blocks are retracted before those that continue them")
        if len(tail):
            before = int(self.table.parent[tail[0]])
            if before != NO_BLOCK:
                self.table.num_children[before] -= 1
            self.table.num_children[tail] = 0
            self._cut(tail[::-1].tolist())
        lease.num_indexed = min(lease.num_indexed, num_indexed)
        return tail

    def release(self, lease: Lease, now: float) -> None:
        """Give the lease up: private blocks are freed, indexed ones may be evicted from now on.

        Raises:
            IntegrityError: it was released before.
        """
        if lease._released:
            raise IntegrityError("a lease was released twice")
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
        """Let an reader read ``tokens`` (i32[num_tokens]) again, as far as they are indexed.

        Args:
            steps: after how many steps; see ``anchors``.

        Returns:
            How many blocks that are; with none the reader is forgotten.
        """
        matched = self.match(root, tokens[: len(tokens) // self.page_size * self.page_size])
        if not len(matched):
            self.remove_reader(reader)
            return 0
        head = int(self.table.head[matched[-1]])
        num_in_node = int(np.count_nonzero(self.table.head[matched] == head))
        if num_in_node < len(self._nodes[head].blocks):
            at_root, path = self._path(head)
            self.index, lower = self.index.split(at_root, path, num_in_node)
            self._note_split(lower.blocks, lower.tokens)
        self.reuse_tracker.set(reader, head, steps)
        self._reorder_changed()
        return len(matched)

    def set_steps(self, reader: Hashable, steps: float) -> None:
        """Say anew how soon an reader reads its prefix; fine where it is not anchored."""
        self.reuse_tracker.set_steps(reader, steps)
        self._reorder_changed()

    def remove_reader(self, reader: Hashable) -> None:
        """Nobody of this name reads anything again; fine where it is not anchored."""
        self.reuse_tracker.remove(reader)
        self._reorder_changed()

    def steps_of(self, block: int) -> float:
        """Steps-to-execution of an indexed block."""
        return float(self.table.steps[self.table.head[block]])

    def take_moved(self) -> set[int]:
        """Nodes whose steps have changed, or of which a block left for the host, since asked."""
        moved, self._moved = self._moved | self.residency.left, set()
        self.residency.left = set()
        return moved & self._nodes.keys()

    def missing(self, head: int) -> np.ndarray:
        """Blocks i32[n] of the path to a node's end that are on the host alone, in path order.

        None of a node that has left the index, or whose copies are still being written.
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

    def end_of(self, head: int) -> int | None:
        """The last block of a node; None where it has left the index."""
        node = self._nodes.get(head)
        return None if node is None else int(node.blocks[-1])

    def flush(self) -> int:
        """Drop every block that no lease holds, of both tiers; how many were dropped."""
        before = self._num_indexed
        self.residency.flush()
        return before - self._num_indexed

    def check_integrity(self) -> None:
        """Raise IntegrityError unless index, table, leases and tiers agree in everything."""
        check_cache(self.index, self.table, self._nodes, [one.blocks for one in self._leases])
        self.reuse_tracker.check_integrity(nodes_below(self.index, self.table))
        self.residency.check_integrity()
        if np.count_nonzero(self.table.head != NO_BLOCK) != self._num_indexed:
            raise IntegrityError("the count of indexed blocks is off")

    def _reorder_changed(self) -> None:
        changed = self.reuse_tracker.changed
        for head in changed:
            self.residency.reorder(self._nodes[head].blocks)
        self._moved |= changed
        changed.clear()

    def _note_node(self, blocks: np.ndarray, tokens: np.ndarray, root: RootKey | None) -> None:
        """``blocks`` now are a node of their own, whose first page starts ``tokens``."""
        first = int(blocks[0])
        self.table.head[blocks] = first
        self._nodes[first] = _Node(tokens[: self.page_size].tobytes(), root, blocks)

    def _note_split(self, lower: np.ndarray, tokens: np.ndarray) -> None:
        """The end of a node, ``lower`` (i32[n]), is now a node of its own."""
        head = int(self.table.head[lower[0]])
        upper = self._nodes[head]
        upper.blocks = upper.blocks[: len(upper.blocks) - len(lower)]
        self._note_node(lower, tokens, None)
        self.reuse_tracker.split(head, int(lower[0]))

    def _forget(self, blocks: list[int]) -> None:
        """Blocks that live nowhere any more leave the index, each after what continues it."""
        self._cut(blocks)
        self.table.free(np.array(blocks, np.int32))

    def _cut(self, blocks: list[int]) -> None:
        """Take blocks out of the index; of each node a tail, and children before their parents."""
        table = self.table
        ids = np.array(blocks, np.int32)
        # Leaves of one parent go together: its path is copied once. Deepest parents first.
        counts = Counter(table.head[ids].tolist())
        parents = table.parent[list(counts)]
        above = np.where(parents == NO_BLOCK, NO_BLOCK, table.head[parents]).tolist()
        lengths_at: dict[int | RootKey | None, dict[bytes, int]] = {}
        emptied: list[tuple[int, int]] = []
        for (head, count), before, over in zip(
            counts.items(), parents.tolist(), above, strict=True
        ):
            node = self._nodes[head]
            num_kept = len(node.blocks) - count
            if num_kept:
                node.blocks = node.blocks[:num_kept]
            else:
                emptied.append((head, before))
            at = node.root if over == NO_BLOCK else over
            lengths = lengths_at.get(at)
            if lengths is None:
                lengths = lengths_at[at] = {}
            lengths[node.key] = num_kept
        cuts = [
            (*(self._path(at) if isinstance(at, int) else (at, ())), lengths)
            for at, lengths in lengths_at.items()
        ]
        for root, path, lengths in sorted(cuts, key=lambda cut: -len(cut[1])):
            self.index = self.index.prune(root, path, lengths)
        for head, before in emptied:  # each after those below it
            del self._nodes[head]
            self.reuse_tracker.drop(head, before)
        table.head[ids] = table.parent[ids] = NO_BLOCK
        self._num_indexed -= len(blocks)
        if self.reuse_tracker.changed:
            self._reorder_changed()

    def _path(self, head: int) -> tuple[RootKey, tuple[bytes, ...]]:
        """Where a node stands: its root, and the first pages of the nodes down to it."""
        nodes, table = self._nodes, self.table
        node = nodes[head]
        path = [node.key]
        while node.root is None:
            head = int(table.head[table.parent[head]])
            node = nodes[head]
            path.append(node.key)
        return node.root, tuple(path[::-1])
