"""Readers of cached prefixes, and the next read of every node that follows from them.

A *reader* (an agent or a conversation) is attached to the node of the index at which the prefix
that it will read again ends. A node counts as the soonest of the readers at it and below it:

    next_read(node) = min(next reads of readers attached to it, next_read of its children)

A change propagates upwards only as far as it changes a minimum, so a step of a run touches the few
nodes on the path to the root, however many agents share them.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, BlockTable
from kvflow_jax.cache.min_multiset import MinMultiset
from kvflow_jax.cache.next_read import SUFFIX, NextRead
from kvflow_jax.errors import IntegrityError


class _ReaderRecord:
    """Node that a reader is attached to, and its next read."""

    __slots__ = ("head", "next_read")

    def __init__(self, head: int, next_read: NextRead) -> None:
        self.head = head
        self.next_read = next_read


class ReuseTracker:
    """Readers attached to the nodes of the index; nodes are identified by their first block."""

    def __init__(self, table: BlockTable) -> None:
        self._table = table
        self._changed: set[int] = set()
        self._records: dict[Hashable, _ReaderRecord] = {}
        self._readers_at: dict[int, set[Hashable]] = {}
        # Of the nodes with a reader at them or below; the table has the same, as columns.
        self._next_read: dict[int, NextRead] = {}
        # Values whose minimum is the next read of a node: those of its readers, and of its
        # children that have any. Only of nodes that have had more than one value.
        self._values: dict[int, MinMultiset[NextRead]] = {}

    def __len__(self) -> int:
        return len(self._records)

    def has_reader_at(self, head: int) -> bool:
        """Return whether the prefix of a reader ends with this node."""
        return head in self._readers_at

    def next_read_of(self, head: int) -> NextRead:
        """Return the soonest read of a node; SUFFIX if it has no reader."""
        return self._next_read.get(head, SUFFIX)

    def attach(self, reader: Hashable, head: int, next_read: NextRead) -> None:
        """Attach a reader to a node, or move it there."""
        record = self._records.get(reader)
        if record is not None:
            if record.head == head:
                self.set_next_read(reader, next_read)
                return
            self.detach(reader)
        self._records[reader] = _ReaderRecord(head, next_read)
        self._readers_at.setdefault(head, set()).add(reader)
        self._replace(head, None, next_read)

    def set_next_read(self, reader: Hashable, next_read: NextRead) -> None:
        """Update the next read of a reader; no effect if it is not attached."""
        record = self._records.get(reader)
        if record is not None and record.next_read != next_read:
            before, record.next_read = record.next_read, next_read
            self._replace(record.head, before, next_read)

    def detach(self, reader: Hashable) -> None:
        """Detach a reader; no effect if it is not attached."""
        record = self._records.pop(reader, None)
        if record is None:
            return
        readers = self._readers_at[record.head]
        readers.remove(reader)
        if not readers:
            del self._readers_at[record.head]
        self._replace(record.head, record.next_read, None)

    def drain_changed(self) -> set[int]:
        """Return the nodes whose next read has changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def split(self, head: int, lower: int) -> None:
        """Move the readers of a node that was split to its lower half, the node ``lower``."""
        next_read = self._next_read.get(head)
        if next_read is None:
            return
        values = self._values.pop(head, None)
        if values is not None:
            self._values[lower] = values
        readers = self._readers_at.pop(head, None)
        if readers is not None:
            self._readers_at[lower] = readers
            for reader in readers:
                self._records[reader].head = lower
        self._set(lower, next_read)

    def drop(self, head: int, before: int) -> None:
        """Remove a node without children, and attach its readers to its parent node.

        Args:
            before: the block before the node; NO_BLOCK at the top, where the readers are detached.
        """
        self._changed.discard(head)
        next_read = self._next_read.get(head)
        if next_read is None:
            return
        self._set(head, None)
        self._values.pop(head, None)
        readers = self._readers_at.pop(head)
        if before == NO_BLOCK:
            for reader in readers:
                del self._records[reader]
            return
        parent = self._table.scalars.head[before]
        self._readers_at.setdefault(parent, set()).update(readers)
        # The parent already counts the minimum of the readers once, as the next read of the node.
        # One reader with that value takes it over; the values of the others are added.
        is_counted = True
        for reader in readers:
            record = self._records[reader]
            record.head = parent
            if is_counted and record.next_read == next_read:
                is_counted = False
            else:
                self._replace(parent, None, record.next_read)

    def check_integrity(self, children: dict[int, list[int]]) -> None:
        """Raise IntegrityError unless the next read of every node is the minimum at and below it.

        Args:
            children: the child nodes of every node of the index.
        """
        readers_at: dict[int, set[Hashable]] = {}
        for reader, record in self._records.items():
            readers_at.setdefault(record.head, set()).add(reader)
        if readers_at != self._readers_at or not readers_at.keys() <= children.keys():
            raise IntegrityError("readers are attached to nodes that do not list them")
        minimum: dict[int, NextRead] = {}
        tops = children.keys() - {child for nodes in children.values() for child in nodes}
        order = list(tops)
        for head in order:
            order.extend(children[head])
        for head in reversed(order):
            values = [self._records[reader].next_read for reader in readers_at.get(head, ())]
            values += [minimum[child] for child in children[head] if child in minimum]
            if values:
                minimum[head] = min(values)
        if minimum != self._next_read:
            raise IntegrityError("the next read of a node is not the least of its readers")
        expected = np.tile(np.array(SUFFIX, np.float64), (len(self._table.next_read), 1))
        for head, next_read in minimum.items():
            expected[head] = next_read
        if not np.array_equal(self._table.next_read, expected):
            raise IntegrityError("the columns of the next read in the table are wrong")

    def _set(self, head: int, next_read: NextRead | None) -> None:
        """Set the next read of a node, None for one without readers, here and in the table."""
        if next_read is None:
            del self._next_read[head]
        else:
            self._next_read[head] = next_read
        self._table.set_next_read(head, SUFFIX if next_read is None else next_read)

    def _replace(self, head: int, old: NextRead | None, new: NextRead | None) -> None:
        """Replace one value of a node, and propagate the change of its minimum to its ancestors."""
        table, multisets = self._table.scalars, self._values
        while True:
            before, values = self._next_read.get(head), multisets.get(head)
            if values is None and old is None and before is not None:
                values = multisets[head] = MinMultiset()
                values.add(before)
            if values is None:
                after = new
            else:
                if new is not None:
                    values.add(new)
                if old is not None:
                    values.remove(old)
                after = values.minimum
                if after is None:
                    del multisets[head]
            if before == after:
                return
            self._set(head, after)
            self._changed.add(head)
            parent = table.parent[head]
            if parent == NO_BLOCK:
                return
            head, old, new = table.head[parent], before, after
