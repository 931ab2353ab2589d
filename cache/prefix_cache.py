"""The prefix cache: index and block table as one thing, and who holds what.

    request ──lease──▶ blocks ──slot──▶ pages of the pool
                         ▲
    tokens ──index───────┘

A block is *private* (leased by the one request that writes it, not indexed), *indexed* (found by
tokens, leased or not) or free. An indexed block without leases stays until room is needed; then
blocks go in the order of the eviction policy, each after all that continue it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, BlockTable
from kvflow_jax.cache.index import RadixIndex, RootKey
from kvflow_jax.cache.leaves import EvictableLeaves
from kvflow_jax.cache.policy import EvictionOrder, lru
from kvflow_jax.errors import IntegrityError


class Lease:
    """The blocks a request holds, in sequence order. Released exactly once.

    Attributes:
        blocks: i32[num_blocks].
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


class PrefixCache:
    """Shares KV blocks between all sequences that begin with the same tokens.

    Args:
        num_slots: usable pages of the pool (its null page not counted).
        page_size: tokens of a block.
        order: the eviction policy.
    """

    def __init__(self, num_slots: int, page_size: int, order: EvictionOrder = lru) -> None:
        self.page_size = page_size
        self.index = RadixIndex(page_size)
        self.table = BlockTable(num_blocks=num_slots, num_slots=num_slots)
        self.num_evicted = 0
        self._leases: set[Lease] = set()
        self._num_evictable = 0
        self._num_indexed = 0
        # Path facts of nodes, by the first block of the node.
        self._page_key: dict[int, bytes] = {}
        self._root: dict[int, RootKey] = {}
        self._leaves = EvictableLeaves(self.table, order)

    @property
    def num_available(self) -> int:
        """Blocks that can be had now: free ones and those that can be evicted."""
        return self.table.num_free_slots + self._num_evictable

    @property
    def num_leased(self) -> int:
        """Blocks that some lease holds."""
        return self.table.num_slots - self.num_available

    @property
    def num_indexed(self) -> int:
        return self._num_indexed

    def match(self, root: RootKey, tokens: np.ndarray) -> np.ndarray:
        """Blocks i32[n] of the longest cached prefix of ``tokens`` (i32[num_tokens])."""
        return self.index.match(root, tokens)

    def lease(self, root: RootKey, blocks: np.ndarray, now: float) -> Lease:
        """Hold indexed ``blocks`` (a match, i32[n]) so that they stay until released."""
        lease = Lease(root, blocks.copy())
        self._hold(blocks, now)
        self._leases.add(lease)
        return lease

    def grow(self, lease: Lease, num_blocks: int, now: float) -> bool:
        """Add fresh private blocks to the lease, evicting others for room.

        Returns:
            False, and nothing has changed, where not that many can be had.
        """
        if num_blocks > self.num_available:
            return False
        short = num_blocks - self.table.num_free_slots
        if short > 0:
            self.evict(short)
        fresh = self.table.allocate(num_blocks, now)
        self.table.leases[fresh] += 1
        lease.blocks = np.concatenate([lease.blocks, fresh])
        return True

    def adopt(self, lease: Lease, tokens: np.ndarray, now: float) -> None:
        """Put blocks that others have indexed since in the place of the lease's private ones.

        ``tokens`` (i32[num_tokens]) are the sequence of the lease. The copies are freed: call
        between steps, when no step still to be dispatched names their pages.
        """
        matched = self.match(lease.root, tokens)
        start, end = lease.num_indexed, min(len(matched), len(lease))
        if end <= start:
            return
        table, originals, copies = self.table, matched[start:end], lease.blocks[start:end].copy()
        self._hold(originals, now)
        lease.blocks[start:end] = originals
        lease.num_indexed = end
        table.leases[copies] -= 1
        table.free(copies[table.leases[copies] == 0])

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
        done = self.index.insert(lease.root, tokens, lease.blocks[:num_full])
        if not np.array_equal(done.existing, lease.blocks[:start]):
            raise IntegrityError("indexed blocks of a lease have left the index")
        self.index = done.index
        if done.split is not None:
            self._add_node(done.split.blocks, done.split.tokens)
        new = lease.blocks[start:num_full]
        if len(new):
            before = int(lease.blocks[start - 1]) if start else NO_BLOCK
            table.parent[new[1:]] = new[:-1]
            table.parent[new[0]] = before
            table.num_children[new[:-1]] = 1
            if before != NO_BLOCK:
                table.num_children[before] += 1
            else:
                self._root[int(new[0])] = lease.root
            if done.is_grown:
                table.head[new] = table.head[before]
            else:
                self._add_node(new, tokens[start * page :])
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
        cuts: _Cuts = {}
        for block in tail[::-1].tolist():
            self._detach(block, cuts)
        self._prune(cuts)
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
        idle = kept[table.leases[kept] == 0]
        self._num_evictable += len(idle)
        self._leaves.offer(idle[table.num_children[idle] == 0])

    def evict(self, num_blocks: int) -> None:
        """Free ``num_blocks`` unleased blocks, lowest key of the policy first, leaves first."""
        table = self.table
        victims: list[int] = []
        cuts: _Cuts = {}
        while len(victims) < num_blocks:
            block = self._leaves.pop()
            if block is None:
                raise IntegrityError(f"{num_blocks - len(victims)} evictable blocks are missing")
            victims.append(block)
            before = self._detach(block, cuts)
            if before != NO_BLOCK and not table.num_children[before] and not table.leases[before]:
                self._leaves.offer(np.array([before], np.int32))
        self._prune(cuts)
        self._num_evictable -= len(victims)
        self.num_evicted += len(victims)
        table.free(np.array(victims, np.int32))

    def flush(self) -> int:
        """Drop every block that no lease holds; how many were dropped."""
        dropped = self._num_evictable
        self.evict(dropped)
        return dropped

    def check_integrity(self) -> None:
        """Raise IntegrityError unless index, table and leases agree in everything."""
        table = self.table
        table.check_integrity()
        self.index.check_integrity()
        held = Counter(int(block) for lease in self._leases for block in lease.blocks)
        if {int(b): int(table.leases[b]) for b in np.flatnonzero(table.leases)} != dict(held):
            raise IntegrityError("the lease counts of the table are not those of the leases")
        heads, children, indexed = self._check_nodes()
        if set(np.flatnonzero(table.head != NO_BLOCK).tolist()) != indexed:
            raise IntegrityError("the table counts blocks as indexed that are not, or misses some")
        if len(indexed) != self._num_indexed or set(self._page_key) != heads:
            raise IntegrityError("counts of indexed blocks or nodes are off")
        counts = {b: int(table.num_children[b]) for b in indexed if table.num_children[b]}
        if counts != dict(children):
            raise IntegrityError("the table's counts of children are wrong")
        idle = {b for b in indexed if table.leases[b] == 0}
        if len(idle) != self._num_evictable:
            raise IntegrityError(f"{len(idle)} blocks can go, {self._num_evictable} are counted")
        if self._leaves.blocks() != {b for b in idle if table.num_children[b] == 0}:
            raise IntegrityError("the leaves that may go are not those on offer")
        leaked = set(np.flatnonzero(table.slot >= 0).tolist()) - indexed - set(held)
        if leaked:
            raise IntegrityError(f"blocks {leaked} are neither leased nor indexed nor free")

    def _check_nodes(self) -> tuple[set[int], Counter[int], set[int]]:
        """Heads of nodes, children by block and blocks of the index, each node checked."""
        table = self.table
        heads: set[int] = set()
        children: Counter[int] = Counter()
        indexed: set[int] = set()
        for root, parent, node in self.index.nodes():
            blocks = node.blocks.tolist()
            first = blocks[0]
            heads.add(first)
            indexed.update(blocks)
            before = [parent, *blocks[:-1]]
            children.update(before)
            if table.parent[node.blocks].tolist() != before:
                raise IntegrityError(f"the parents of blocks {blocks} are wrong")
            if (table.head[node.blocks] != first).any():
                raise IntegrityError(f"blocks {blocks} do not know the head of their node")
            if self._page_key.get(first) != node.tokens[: self.page_size].tobytes():
                raise IntegrityError(f"the path key of block {first} is wrong")
            if self._root.get(first) != (root if parent == NO_BLOCK else None):
                raise IntegrityError(f"the root of block {first} is wrong")
        children.pop(NO_BLOCK, None)
        return heads, children, indexed

    def _hold(self, blocks: np.ndarray, now: float) -> None:
        table = self.table
        self._num_evictable -= int((table.leases[blocks] == 0).sum())
        table.leases[blocks] += 1
        table.last_use[blocks] = now

    def _add_node(self, blocks: np.ndarray, tokens: np.ndarray) -> None:
        """Note that ``blocks`` now are a node of their own, whose first page starts ``tokens``."""
        first = int(blocks[0])
        self.table.head[blocks] = first
        self._page_key[first] = tokens[: self.page_size].tobytes()

    def _detach(self, block: int, cuts: _Cuts) -> int:
        """Clear the index facts of a leaf and note its cut; the block before it."""
        table = self.table
        head, before = int(table.head[block]), int(table.parent[block])
        if head not in cuts:
            # Its ancestors' facts are still whole: they go after it.
            cuts[head] = _Cut(*self._path(head))
        cuts[head].num_blocks += 1
        table.head[block] = table.parent[block] = NO_BLOCK
        if before != NO_BLOCK:
            table.num_children[before] -= 1
        if block == head:
            del self._page_key[head]
            self._root.pop(head, None)
        self._num_indexed -= 1
        return before

    def _prune(self, cuts: _Cuts) -> None:
        # In the order noted, children come before their parents.
        for cut in cuts.values():
            self.index = self.index.prune(cut.root, cut.path, cut.num_blocks)

    def _path(self, head: int) -> tuple[RootKey, list[bytes]]:
        path = [self._page_key[head]]
        while (before := int(self.table.parent[head])) != NO_BLOCK:
            head = int(self.table.head[before])
            path.append(self._page_key[head])
        return self._root[head], path[::-1]


@dataclass(slots=True)
class _Cut:
    """How many blocks to prune from the end of one node."""

    root: RootKey
    path: list[bytes]
    num_blocks: int = 0


_Cuts = dict[int, _Cut]
