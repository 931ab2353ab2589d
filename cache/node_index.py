"""Indexed nodes: the functional radix index with a record of each node, by the node's first block.

Keeps the columns of the block table that follow from the index: ``head``, ``parent``, ``depth``,
and ``num_children`` as far as blocks are added.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, BlockTable
from kvflow_jax.cache.index import Node, RadixIndex, RootKey
from kvflow_jax.errors import IntegrityError


@dataclass(slots=True)
class NodeRecord:
    """Record of a node.

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


class Emptied(NamedTuple):
    """A node that has left the index, and the block before it; NO_BLOCK at the top."""

    head: int
    before: int


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
        self._records: dict[int, NodeRecord] = {}

    def __contains__(self, head: int) -> bool:
        return head in self._records

    @property
    def records(self) -> dict[int, NodeRecord]:
        """The record of each node; not to be changed."""
        return self._records

    def blocks_of(self, head: int) -> np.ndarray:
        """Return the blocks of a node, i32[n]."""
        return self._records[head].blocks

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
        table, page_size = self._table, self.index.page_size
        insertion = self.index.insert(root, tokens, blocks, may_grow=may_grow)
        if not np.array_equal(insertion.existing, blocks[:start]):
            raise IntegrityError("an indexed block of a lease is no longer in the index")
        self.index = insertion.index
        split = None if insertion.split is None else self._record_split(insertion.split)
        before = int(blocks[start - 1]) if start else NO_BLOCK
        new = blocks[start:].copy()
        table.depth[new] = np.arange(start, len(blocks))
        table.parent[new[1:]] = new[:-1]
        table.parent[new[0]] = before
        table.num_children[new[:-1]] = 1
        if before != NO_BLOCK:
            table.num_children[before] += 1
        if insertion.is_grown:
            head = int(table.head[before])
            table.head[new] = head
            record = self._records[head]
            record.blocks = np.concatenate([record.blocks, new])
        else:
            self._record(new, tokens[start * page_size :], root if before == NO_BLOCK else None)
        self.num_blocks += len(new)
        return split

    def split_after(self, block: int) -> Split | None:
        """Make an indexed block the last of its node; return the split, None if it was the last."""
        head = int(self._table.head[block])
        record = self._records[head]
        num_upper = int(np.flatnonzero(record.blocks == block)[0]) + 1
        if num_upper == len(record.blocks):
            return None
        root, path = self._path(head)
        self.index, lower = self.index.split(root, path, num_upper)
        return self._record_split(lower)

    def remove(self, blocks: list[int]) -> list[Emptied]:
        """Remove blocks from the index: a tail of each node, children before their parents.

        Returns:
            The nodes without blocks, in an order in which none has children.
        """
        table = self._table
        ids = np.array(blocks, np.int32)
        # Leaves under one parent are removed together, so that its path is copied once.
        counts = Counter(table.head[ids].tolist())
        parents = table.parent[list(counts)]
        parent_heads = np.where(parents == NO_BLOCK, NO_BLOCK, table.head[parents]).tolist()
        # By parent node, or by root key for top nodes: blocks to keep, by the key of each leaf.
        lengths_under: dict[int | RootKey, dict[bytes, int]] = {}
        emptied: list[Emptied] = []
        for (head, count), parent, parent_head in zip(
            counts.items(), parents.tolist(), parent_heads, strict=True
        ):
            record = self._records[head]
            num_kept = len(record.blocks) - count
            if num_kept:
                record.blocks = record.blocks[:num_kept]
            else:
                emptied.append(Emptied(head, parent))
            above: int | RootKey = parent_head if record.root is None else record.root
            lengths = lengths_under.get(above)
            if lengths is None:
                lengths = lengths_under[above] = {}
            lengths[record.key] = num_kept
        cuts = [
            (self._path(above) if isinstance(above, int) else (above, ()), lengths)
            for above, lengths in lengths_under.items()
        ]
        # Deepest parents first.
        for (root, path), lengths in sorted(cuts, key=lambda cut: -len(cut[0][1])):
            self.index = self.index.prune(root, path, lengths)
        for node in emptied:
            del self._records[node.head]
        self.num_blocks -= len(blocks)
        return emptied

    def clear_columns(self, blocks: list[int]) -> None:
        """Clear the columns of blocks that were removed, once nothing reads them any more."""
        self._table.head[blocks] = self._table.parent[blocks] = NO_BLOCK

    def check_integrity(self) -> None:
        """Raise IntegrityError if the count of indexed blocks is wrong."""
        if np.count_nonzero(self._table.head != NO_BLOCK) != self.num_blocks:
            raise IntegrityError("the count of indexed blocks is wrong")

    def _record(self, blocks: np.ndarray, tokens: np.ndarray, root: RootKey | None) -> None:
        """Record a new node of ``blocks``; ``tokens`` begin with its first page."""
        first = int(blocks[0])
        self._table.head[blocks] = first
        key = tokens[: self.index.page_size].tobytes()
        self._records[first] = NodeRecord(key, root, blocks)

    def _record_split(self, lower: Node) -> Split:
        """Record that the end of a node, ``lower``, is now a node of its own."""
        head, first = int(self._table.head[lower.blocks[0]]), int(lower.blocks[0])
        upper = self._records[head]
        upper.blocks = upper.blocks[: len(upper.blocks) - len(lower.blocks)]
        self._record(lower.blocks, lower.tokens, None)
        return Split(head, first)

    def _path(self, head: int) -> tuple[RootKey, tuple[bytes, ...]]:
        """Return the path of a node: its root, and the first pages of the nodes down to it."""
        records, table = self._records, self._table
        record = records[head]
        path = [record.key]
        while record.root is None:
            head = int(table.head[table.parent[head]])
            record = records[head]
            path.append(record.key)
        return record.root, tuple(path[::-1])
