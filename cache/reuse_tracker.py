"""Readers of cached prefixes, and the next read of every node that follows from them.

A *reader* (an agent or a conversation) is attached to the node of the index at which the prefix
that it will read again ends. A node counts as the soonest of the readers at it and below it:

    next_read(node) = min(next reads of readers attached to it, next_read of its children)

A change propagates upwards only as far as it changes a minimum, so a step of a run touches the few
nodes on the path to the root, however many agents share them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, BlockTable
from kvflow_jax.cache.min_multiset import MinMultiset
from kvflow_jax.cache.next_read import SUFFIX, NextRead
from kvflow_jax.errors import IntegrityError


class _Attachment:
    """A reader, the node that it is attached to, and its next read."""

    __slots__ = ("head", "next_read", "reader")

    def __init__(self, reader: Hashable, head: int, next_read: NextRead) -> None:
        self.reader = reader
        self.head = head
        self.next_read = next_read


class _NodeReads:
    """A node with a reader at it or below.

    Attributes:
        next_read: its soonest read; the table has the same, as columns.
        attached: the readers attached to it.
        values: the next reads of these readers, and of its children that have any: their minimum is
            ``next_read``. None for a node that has never had more than one value.
    """

    __slots__ = ("attached", "next_read", "values")

    def __init__(self, next_read: NextRead) -> None:
        self.next_read = next_read
        self.attached: set[_Attachment] = set()
        self.values: MinMultiset[NextRead] | None = None

    def replace(self, old: NextRead | None, new: NextRead | None) -> NextRead | None:
        """Replace one value, None for none; return the next read, None if no value is left."""
        if self.values is None and old is None:
            self.values = MinMultiset()
            self.values.add(self.next_read)
        if self.values is None:  # ``old`` was the only value
            least = new
        else:
            if new is not None:
                self.values.add(new)
            if old is not None:
                self.values.remove(old)
            least = self.values.minimum
        if least is not None:
            self.next_read = least
        return least


class ReuseTracker:
    """Readers attached to the nodes of the index; nodes are identified by their first block."""

    def __init__(self, table: BlockTable) -> None:
        self._table = table
        self._changed: set[int] = set()
        self._attachments: dict[Hashable, _Attachment] = {}
        # By the first block of a node; None for nodes without a reader at them or below.
        self._nodes: list[_NodeReads | None] = [None] * len(table.head)

    def __len__(self) -> int:
        return len(self._attachments)

    def has_reader_at(self, head: int) -> bool:
        """Return whether the prefix of a reader ends with this node."""
        node = self._nodes[head]
        return node is not None and bool(node.attached)

    def next_read_of(self, head: int) -> NextRead:
        """Return the soonest read of a node; SUFFIX if it has no reader."""
        node = self._nodes[head]
        return SUFFIX if node is None else node.next_read

    def attach(self, reader: Hashable, head: int, next_read: NextRead) -> None:
        """Attach a reader to a node, or move it there."""
        attachment = self._attachments.get(reader)
        if attachment is not None:
            if attachment.head == head:
                self.set_next_read(reader, next_read)
                return
            self.detach(reader)
        attachment = self._attachments[reader] = _Attachment(reader, head, next_read)
        self._replace(head, None, next_read)
        self._node(head).attached.add(attachment)

    def set_next_read(self, reader: Hashable, next_read: NextRead) -> None:
        """Update the next read of a reader; no effect if it is not attached."""
        attachment = self._attachments.get(reader)
        if attachment is not None and attachment.next_read != next_read:
            before, attachment.next_read = attachment.next_read, next_read
            self._replace(attachment.head, before, next_read)

    def detach(self, reader: Hashable) -> None:
        """Detach a reader; no effect if it is not attached."""
        attachment = self._attachments.pop(reader, None)
        if attachment is None:
            return
        self._node(attachment.head).attached.remove(attachment)
        self._replace(attachment.head, attachment.next_read, None)

    def drain_changed(self) -> set[int]:
        """Return the nodes whose next read has changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def split(self, head: int, lower: int) -> None:
        """Move the readers of a node that was split to its lower half, the node ``lower``."""
        node = self._nodes[head]
        if node is None:
            return
        self._nodes[lower] = node
        for attachment in node.attached:
            attachment.head = lower
        self._nodes[head] = _NodeReads(node.next_read)
        self._table.next_read[lower] = node.next_read

    def drop(self, nodes: Mapping[int, int]) -> None:
        """Remove nodes without children, and attach the readers of each to its parent node.

        Args:
            nodes: each with the block before it, children before parents; NO_BLOCK at the top,
                where the readers are detached.
        """
        table = self._table
        for head, before in nodes.items():
            node, self._nodes[head] = self._nodes[head], None
            if node is None:
                continue
            if before == NO_BLOCK:
                for attachment in node.attached:
                    del self._attachments[attachment.reader]
                continue
            parent = table.scalars.head[before]
            self._node(parent).attached |= node.attached
            # The parent already counts the minimum of the readers once, as the next read of the
            # node. One reader with that value takes it over; the values of the others are added.
            is_counted = True
            for attachment in node.attached:
                attachment.head = parent
                if is_counted and attachment.next_read == node.next_read:
                    is_counted = False
                else:
                    self._replace(parent, None, attachment.next_read)
        self._changed.difference_update(nodes)
        table.next_read[list(nodes)] = SUFFIX

    def check_integrity(self, children: dict[int, list[int]]) -> None:
        """Raise IntegrityError unless the next read of every node is the minimum at and below it.

        Args:
            children: the child nodes of every node of the index.
        """
        attached: dict[int, set[_Attachment]] = {}
        for attachment in self._attachments.values():
            attached.setdefault(attachment.head, set()).add(attachment)
        nodes = {head: node for head, node in enumerate(self._nodes) if node is not None}
        listed = {head: node.attached for head, node in nodes.items() if node.attached}
        if attached != listed or not attached.keys() <= children.keys():
            raise IntegrityError("readers are attached to nodes that do not list them")
        minimum: dict[int, NextRead] = {}
        tops = children.keys() - {child for below in children.values() for child in below}
        order = list(tops)
        for head in order:
            order.extend(children[head])
        for head in reversed(order):
            values = [attachment.next_read for attachment in attached.get(head, ())]
            values += [minimum[child] for child in children[head] if child in minimum]
            if values:
                minimum[head] = min(values)
        if minimum != {head: node.next_read for head, node in nodes.items()}:
            raise IntegrityError("the next read of a node is not the least of its readers")
        expected = np.tile(np.array(SUFFIX, np.float64), (len(self._table.next_read), 1))
        for head, next_read in minimum.items():
            expected[head] = next_read
        if not np.array_equal(self._table.next_read, expected):
            raise IntegrityError("the columns of the next read in the table are wrong")

    def _node(self, head: int) -> _NodeReads:
        node = self._nodes[head]
        assert node is not None
        return node

    def _replace(self, head: int, old: NextRead | None, new: NextRead | None) -> None:
        """Replace one value of a node, and propagate the change of its minimum to its ancestors."""
        table, nodes = self._table, self._nodes
        while True:
            node = nodes[head]
            before = None if node is None else node.next_read
            after = new if node is None else node.replace(old, new)
            if before == after:
                return
            if after is None:
                nodes[head] = None
            elif node is None:
                nodes[head] = _NodeReads(after)
            table.next_read[head] = SUFFIX if after is None else after
            self._changed.add(head)
            parent = table.scalars.parent[head]
            if parent == NO_BLOCK:
                return
            head, old, new = table.scalars.head[parent], before, after
