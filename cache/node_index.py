"""Indexed nodes: the functional radix index, and each node by its first block.

Keeps the columns of the block table that follow from the index: ``head``, ``parent``, ``depth``,
and ``num_children`` as far as blocks are added.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, BlockTable
from kvflow_jax.cache.index import NO_BLOCKS, Node, RadixIndex, RootKey
from kvflow_jax.errors import IntegrityError


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """What is recorded of a node.

    Attributes:
        key: its first page, as the index keys it.
        root: its root key if it is a top node, else None.
        blocks: i32[n].
    """

    key: bytes
    root: RootKey | None
    blocks: np.ndarray


class Split(NamedTuple):
    """A node that was split: ``lower``, its end, is now a node of its own."""

    upper: int
    lower: int


class NodeIndex:
    """The nodes of one index. Nodes are identified by their first block.

    Attributes:
        index: the current index; replaced, never changed.
        num_blocks: blocks in the index.
    """

    def __init__(self, table: BlockTable, page_size: int) -> None:
        self.index = RadixIndex(page_size)
        self.num_blocks = 0
        self._table = table
        # Columns like those of the table, valid at the first block of a node: see ``NodeRecord``.
        self._keys = [b""] * len(table.head)
        self._blocks = [NO_BLOCKS] * len(table.head)
        self._roots: dict[int, RootKey] = {}  # of the top nodes

    def __contains__(self, head: int) -> bool:
        return bool(self._keys[head])

    def records(self) -> dict[int, NodeRecord]:
        """Return the record of each node, by its first block. For checks."""
        return {
            head: NodeRecord(key, self._roots.get(head), self._blocks[head])
            for head, key in enumerate(self._keys)
            if key
        }

    def blocks_of(self, head: int) -> np.ndarray:
        """Return the blocks of a node, i32[n]."""
        return self._blocks[head]

    def insert(
        self,
        root: RootKey,
        tokens: np.ndarray,  # i32[num_blocks * page_size]
        blocks: np.ndarray,  # i32[num_blocks]
        start: int,
        *,
        may_grow: bool,
    ) -> Split | None:
        """Index ``blocks[start:]``; those before are indexed for the same tokens already.

        Args:
            may_grow: see ``RadixIndex.insert``.

        Returns:
            The node that was split at ``start``, if one was.

        Raises:
            IntegrityError: other blocks are indexed for the first ``start`` pages.
        """
        table = self._table
        insertion = self.index.insert(root, tokens, blocks, may_grow=may_grow)
        node = insertion.node
        if node is None or not np.array_equal(insertion.existing, blocks[:start]):
            raise IntegrityError("an indexed block of a lease is no longer in the index")
        self.index = insertion.index
        split = None if insertion.split is None else self._record_split(insertion.split)
        before = int(blocks[start - 1]) if start else NO_BLOCK
        new = node.blocks[start - len(blocks) :]
        table.depth[new] = np.arange(start, len(blocks))
        table.parent[new[1:]] = new[:-1]
        table.parent[new[0]] = before
        table.num_children[new[:-1]] = 1
        if before != NO_BLOCK:
            table.num_children[before] += 1
        if insertion.is_grown:
            head = int(table.head[before])
            table.head[new] = head
            self._blocks[head] = node.blocks
        else:
            self._record(node, root if before == NO_BLOCK else None)
        self.num_blocks += len(new)
        return split

    def split_after(self, block: int) -> Split | None:
        """Make an indexed block the last of its node; return the split, None if it was the last."""
        head = int(self._table.head[block])
        num_upper = int(self._table.depth[block] - self._table.depth[head]) + 1
        if num_upper == len(self._blocks[head]):
            return None
        root, path = self._path(head)
        self.index, lower = self.index.split(root, path, num_upper)
        return self._record_split(lower)

    def remove(self, blocks: np.ndarray) -> dict[int, int]:
        """Remove blocks i32[n] from the index: a tail of each node, children before their parents.

        Returns:
            The nodes without blocks, in an order in which none has children, each with the block
            before it; NO_BLOCK at the top.
        """
        table, keys = self._table, self._keys
        heads = table.head[blocks]
        # By node: blocks to keep, as many as there are before the last that is removed.
        num_kept = dict(
            zip(heads.tolist(), (table.depth[blocks] - table.depth[heads]).tolist(), strict=True)
        )
        parents = table.parent[list(num_kept)]
        # Leaves under one parent are removed together, so that its path is copied once. By parent
        # node, or by root key for top nodes: blocks to keep, by the key of each leaf.
        lengths_under: defaultdict[int | RootKey, dict[bytes, int]] = defaultdict(dict)
        emptied: dict[int, int] = {}
        for (head, length), parent, above in zip(
            num_kept.items(), parents.tolist(), table.head[parents].tolist(), strict=True
        ):
            if length:
                self._blocks[head] = self._blocks[head][:length]
            else:
                emptied[head] = parent
            lengths_under[self._roots[head] if parent == NO_BLOCK else above][keys[head]] = length
        cuts = [
            (self._path(above) if isinstance(above, int) else (above, ()), lengths)
            for above, lengths in lengths_under.items()
        ]
        # Deepest parents first.
        for (root, path), lengths in sorted(cuts, key=lambda cut: -len(cut[0][1])):
            self.index = self.index.prune(root, path, lengths)
        for head, parent in emptied.items():
            keys[head], self._blocks[head] = b"", NO_BLOCKS
            if parent == NO_BLOCK:
                del self._roots[head]
        self.num_blocks -= len(blocks)
        return emptied

    def clear_columns(self, blocks: np.ndarray) -> None:
        """Clear the columns of blocks that were removed, once nothing reads them any more."""
        self._table.head[blocks] = self._table.parent[blocks] = NO_BLOCK

    def check_integrity(self) -> None:
        """Raise IntegrityError if the count of indexed blocks is wrong."""
        if np.count_nonzero(self._table.head != NO_BLOCK) != self.num_blocks:
            raise IntegrityError("the count of indexed blocks is wrong")

    def _record(self, node: Node, root: RootKey | None) -> None:
        """Record a new node.

        Args:
            root: its root key if it is a top node, else None.
        """
        first = int(node.blocks[0])
        self._table.head[node.blocks] = first
        self._keys[first], self._blocks[first] = node.key, node.blocks
        if root is not None:
            self._roots[first] = root

    def _record_split(self, lower: Node) -> Split:
        """Record that the end of a node, ``lower``, is now a node of its own."""
        head, first = int(self._table.head[lower.blocks[0]]), int(lower.blocks[0])
        self._blocks[head] = self._blocks[head][: -len(lower.blocks)]
        self._record(lower, None)
        return Split(head, first)

    def _path(self, head: int) -> tuple[RootKey, tuple[bytes, ...]]:
        """Return the path of a node: its root, and the first pages of the nodes down to it."""
        table = self._table.scalars
        path = [self._keys[head]]
        while (parent := table.parent[head]) != NO_BLOCK:
            head = table.head[parent]
            path.append(self._keys[head])
        return self._roots[head], tuple(path[::-1])
