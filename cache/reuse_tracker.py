"""Readers of cached prefixes, and the steps-to-execution of every node that follow from them.

A *reader* (an agent or a conversation) is attached to the node of the index at which the prefix
that it will read again ends. A node counts as the soonest of the readers at it and below it:

    steps(node) = min(steps of readers attached to it, steps of its children)

A change propagates upwards only as far as it changes a minimum, so a step of a run touches the few
nodes on the path to the root, however many agents share them.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, SUFFIX, BlockTable
from kvflow_jax.errors import IntegrityError

# Steps of a reader of unknown order, steps added for a throttled reader, and steps of a reader that
# will never run: all larger than any steps of a graph, and smaller than SUFFIX.
UNKNOWN_STEPS = float(1 << 20)
THROTTLED_STEPS = float(1 << 21)
NEVER_STEPS = float(1 << 30)
# Fractions of a step that order readers with equal whole steps: up to LIKELIHOOD_SPREAD is added as
# a read gets less likely, and OTHER_BRANCH for a branch that is not prefetched. Their sum is below
# 1, so different whole steps keep their order.
LIKELIHOOD_SPREAD, OTHER_BRANCH = 0.4, 0.5


class MinMultiset:
    """Multiset of numbers that tracks its minimum."""

    __slots__ = ("_counts", "_heap")

    def __init__(self) -> None:
        self._counts: dict[float, int] = {}
        self._heap: list[float] = []  # every value of the multiset, and stale values

    def __len__(self) -> int:
        """Return the number of distinct values."""
        return len(self._counts)

    @property
    def minimum(self) -> float:
        """The smallest value; infinity if the multiset is empty."""
        heap, counts = self._heap, self._counts
        while heap and heap[0] not in counts:
            heapq.heappop(heap)
        return heap[0] if heap else SUFFIX

    def add(self, value: float) -> None:
        """Add one occurrence of a value."""
        if value in self._counts:
            self._counts[value] += 1
            return
        self._counts[value] = 1
        heapq.heappush(self._heap, value)
        if len(self._heap) > 2 * len(self._counts) + 8:
            self._heap = sorted(self._counts)

    def remove(self, value: float) -> None:
        """Remove one occurrence of a value.

        Raises:
            KeyError: the multiset does not contain the value.
        """
        if self._counts[value] == 1:
            del self._counts[value]
        else:
            self._counts[value] -= 1


class _ReaderRecord:
    """Node that a reader is attached to, and its steps-to-execution."""

    __slots__ = ("head", "steps")

    def __init__(self, head: int, steps: float) -> None:
        self.head = head
        self.steps = steps


class ReuseTracker:
    """Readers attached to the nodes of the index; nodes are identified by their first block.

    Attributes:
        changed: nodes whose steps have changed; the consumer clears it.
    """

    def __init__(self, table: BlockTable) -> None:
        self.changed: set[int] = set()
        self._table = table
        self._records: dict[Hashable, _ReaderRecord] = {}
        self._readers_at: dict[int, set[Hashable]] = {}
        # Values whose minimum is the steps of a node: the steps of its readers, and those of its
        # children that have any. Only of nodes that have had more than one value.
        self._values: dict[int, MinMultiset] = {}

    def __len__(self) -> int:
        return len(self._records)

    def has_reader_at(self, head: int) -> bool:
        """Return whether the prefix of a reader ends with this node."""
        return head in self._readers_at

    def node_of(self, reader: Hashable) -> int | None:
        """Return the node that a reader is attached to; None if it is not, or no longer."""
        record = self._records.get(reader)
        return None if record is None else record.head

    def set(self, reader: Hashable, head: int, steps: float) -> None:
        """Attach a reader to a node, or move it there."""
        record = self._records.get(reader)
        if record is not None:
            if record.head == head:
                self.set_steps(reader, steps)
                return
            self.remove(reader)
        self._records[reader] = _ReaderRecord(head, steps)
        self._readers_at.setdefault(head, set()).add(reader)
        self._replace(head, None, steps)

    def set_steps(self, reader: Hashable, steps: float) -> None:
        """Update the steps of a reader; no effect if it is not attached."""
        record = self._records.get(reader)
        if record is not None and record.steps != steps:
            before, record.steps = record.steps, steps
            self._replace(record.head, before, steps)

    def remove(self, reader: Hashable) -> None:
        """Detach a reader; no effect if it is not attached."""
        record = self._records.pop(reader, None)
        if record is None:
            return
        readers = self._readers_at[record.head]
        readers.remove(reader)
        if not readers:
            del self._readers_at[record.head]
        self._replace(record.head, record.steps, None)

    def split(self, head: int, lower: int) -> None:
        """Move the readers of a node that was split to its lower half, the node ``lower``."""
        steps = self._table.scalars.steps[head]
        if steps == SUFFIX:
            return
        values = self._values.pop(head, None)
        if values is not None:
            self._values[lower] = values
        readers = self._readers_at.pop(head, None)
        if readers is not None:
            self._readers_at[lower] = readers
            for reader in readers:
                self._records[reader].head = lower
        self._table.steps[lower] = steps

    def drop(self, head: int, before: int) -> None:
        """Remove a node without children, and attach its readers to its parent node.

        Args:
            before: the block before the node; NO_BLOCK at the top, where the readers are detached.
        """
        table = self._table.scalars
        self.changed.discard(head)
        steps = table.steps[head]
        if steps == SUFFIX:
            return
        self._table.steps[head] = SUFFIX
        self._values.pop(head, None)
        readers = self._readers_at.pop(head)
        if before == NO_BLOCK:
            for reader in readers:
                del self._records[reader]
            return
        parent = table.head[before]
        self._readers_at.setdefault(parent, set()).update(readers)
        # The parent already counts the minimum of the readers once, as the steps of the node. One
        # reader with these steps takes over that value; the values of the others are added.
        is_counted = True
        for reader in readers:
            record = self._records[reader]
            record.head = parent
            if is_counted and record.steps == steps:
                is_counted = False
            else:
                self._replace(parent, None, record.steps)

    def check_integrity(self, children: dict[int, list[int]]) -> None:
        """Raise IntegrityError unless every node's steps are the minimum at and below it.

        Args:
            children: the child nodes of every node of the index.
        """
        readers_at: dict[int, set[Hashable]] = {}
        for reader, record in self._records.items():
            readers_at.setdefault(record.head, set()).add(reader)
        if readers_at != self._readers_at or not readers_at.keys() <= children.keys():
            raise IntegrityError("readers are attached to nodes that do not list them")
        minimum: dict[int, float] = {}
        tops = children.keys() - {child for nodes in children.values() for child in nodes}
        order = list(tops)
        for head in order:
            order.extend(children[head])
        for head in reversed(order):
            values = [self._records[reader].steps for reader in readers_at.get(head, ())]
            values += [minimum[child] for child in children[head]]
            minimum[head] = min(values, default=SUFFIX)
            if self._table.steps[head] != minimum[head]:
                raise IntegrityError(f"node {head} has wrong steps")
        others = np.isfinite(self._table.steps)
        others[list(children)] = False
        if others.any():
            raise IntegrityError("a block that is not the head of a node has steps")

    def _replace(self, head: int, old: float | None, new: float | None) -> None:
        """Replace one value of a node, and propagate the change of its minimum to its ancestors."""
        table, steps, multisets = self._table.scalars, self._table.steps, self._values
        while True:
            before, values = table.steps[head], multisets.get(head)
            if values is None and old is None and before != SUFFIX:
                values = multisets[head] = MinMultiset()
                values.add(before)
            if values is None:
                after = SUFFIX if new is None else new
            else:
                if new is not None:
                    values.add(new)
                if old is not None:
                    values.remove(old)
                after = values.minimum
                if not values:
                    del multisets[head]
            if before == after:
                return
            steps[head] = after
            self.changed.add(head)
            parent = table.parent[head]
            if parent == NO_BLOCK:
                return
            head = table.head[parent]
            old = None if before == SUFFIX else before
            new = None if after == SUFFIX else after
