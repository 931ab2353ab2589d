"""Who will read which prefix again, and how soon.

An *reader* (an agent, a conversation) is anchored at the node of the index where what it will read
again ends. Every node counts as the soonest of the readers at it and below it:

    steps(node) = min(steps of readers anchored at it, steps of its children)

A change travels up only as far as it changes a minimum, so a moved run touches the few nodes on
the way to the root, however many agents share them.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, SUFFIX, BlockTable
from kvflow_jax.errors import IntegrityError

# Steps of an reader of whom no order is known, how many more one counts that is held back, and those
# of one that will never run: all after any that a graph can give, and before a suffix.
UNKNOWN_STEPS = float(1 << 20)
THROTTLED_STEPS = float(1 << 21)
NEVER_STEPS = float(1 << 30)
# Of readers equally near, those less likely to read count as up to so much farther; and those that
# are not prepared for as this much. Whole steps stay apart.
LIKELIHOOD_SPREAD, OTHER_BRANCH = 0.4, 0.5


class MinBag:
    """A multiset of numbers that knows its least."""

    __slots__ = ("_counts", "_heap")

    def __init__(self) -> None:
        self._counts: dict[float, int] = {}
        self._heap: list[float] = []  # every value of the bag, and values that have left it

    def __len__(self) -> int:
        """How many different numbers it holds."""
        return len(self._counts)

    @property
    def least(self) -> float:
        """Infinity where it is empty."""
        heap, counts = self._heap, self._counts
        while heap and heap[0] not in counts:
            heapq.heappop(heap)
        return heap[0] if heap else SUFFIX

    def add(self, value: float) -> None:
        if value in self._counts:
            self._counts[value] += 1
            return
        self._counts[value] = 1
        heapq.heappush(self._heap, value)
        if len(self._heap) > 2 * len(self._counts) + 8:
            self._heap = sorted(self._counts)

    def remove(self, value: float) -> None:
        """Take one of the value out; KeyError where there is none."""
        if self._counts[value] == 1:
            del self._counts[value]
        else:
            self._counts[value] -= 1


class _Reader:
    __slots__ = ("head", "steps")

    def __init__(self, head: int, steps: float) -> None:
        self.head = head
        self.steps = steps


class ReuseTracker:
    """Owners at the nodes of the index, nodes named by their first block.

    Attributes:
        changed: nodes whose steps have changed, for whoever orders by them to take.
    """

    def __init__(self, table: BlockTable) -> None:
        self.changed: set[int] = set()
        self._table = table
        self._readers: dict[Hashable, _Reader] = {}
        self._at: dict[int, set[Hashable]] = {}
        self._bags: dict[int, MinBag] = {}  # of nodes that count as more than one has said

    def __len__(self) -> int:
        return len(self._readers)

    def holds(self, head: int) -> bool:
        """Whether an reader's prefix ends with this node."""
        return head in self._at

    def node_of(self, reader: Hashable) -> int | None:
        """Where an reader is anchored; None if nowhere, or no longer."""
        anchor = self._readers.get(reader)
        return None if anchor is None else anchor.head

    def set(self, reader: Hashable, head: int, steps: float) -> None:
        """Anchor an reader at a node, or move it there."""
        anchor = self._readers.get(reader)
        if anchor is not None:
            if anchor.head == head:
                self.set_steps(reader, steps)
                return
            self.remove(reader)
        self._readers[reader] = _Reader(head, steps)
        self._at.setdefault(head, set()).add(reader)
        self._replace(head, None, steps)

    def set_steps(self, reader: Hashable, steps: float) -> None:
        """Say how soon an reader reads; nothing happens where it is not anchored."""
        anchor = self._readers.get(reader)
        if anchor is not None and anchor.steps != steps:
            before, anchor.steps = anchor.steps, steps
            self._replace(anchor.head, before, steps)

    def remove(self, reader: Hashable) -> None:
        """Forget an reader; fine where it is not anchored."""
        anchor = self._readers.pop(reader, None)
        if anchor is None:
            return
        self._leave(reader, anchor.head)
        self._replace(anchor.head, anchor.steps, None)

    def split(self, head: int, lower: int) -> None:
        """A node was cut: the node ``lower`` is its lower half, and readers stand at its end."""
        steps = self._table.scalars.steps[head]
        if steps == SUFFIX:
            return
        bag = self._bags.pop(head, None)
        if bag is not None:
            self._bags[lower] = bag
        readers = self._at.pop(head, None)
        if readers is not None:
            self._at[lower] = readers
            for reader in readers:
                self._readers[reader].head = lower
        self._table.steps[lower] = steps

    def drop(self, head: int, before: int) -> None:
        """A node without children leaves the index; its readers wait at the one above.

        Args:
            before: the block before the node, NO_BLOCK at the top.
        """
        one = self._table.scalars
        self.changed.discard(head)
        steps = one.steps[head]
        if steps == SUFFIX:
            return
        self._table.steps[head] = SUFFIX
        self._bags.pop(head, None)
        readers = self._at.pop(head)
        if before == NO_BLOCK:
            for reader in readers:
                del self._readers[reader]
            return
        above = one.head[before]
        self._at.setdefault(above, set()).update(readers)
        # Above, the node counted as the soonest of them: he takes its place, the others are new.
        is_counted = True
        for reader in readers:
            anchor = self._readers[reader]
            anchor.head = above
            if is_counted and anchor.steps == steps:
                is_counted = False
            else:
                self._replace(above, None, anchor.steps)

    def check_integrity(self, children: dict[int, list[int]]) -> None:
        """Raise IntegrityError unless every node's steps are the least at and below it.

        Args:
            children: of every node of the index, the nodes below it.
        """
        at: dict[int, set[Hashable]] = {}
        for reader, anchor in self._readers.items():
            at.setdefault(anchor.head, set()).add(reader)
        if at != self._at or not at.keys() <= children.keys():
            raise IntegrityError("readers are anchored at nodes that do not know them")
        least: dict[int, float] = {}
        tops = children.keys() - {child for below in children.values() for child in below}
        order = list(tops)
        for head in order:
            order.extend(children[head])
        for head in reversed(order):
            values = [self._readers[reader].steps for reader in at.get(head, ())]
            values += [least[child] for child in children[head]]
            least[head] = min(values, default=SUFFIX)
            if self._table.steps[head] != least[head]:
                raise IntegrityError(f"node {head} has wrong steps")
        others = np.isfinite(self._table.steps)
        others[list(children)] = False
        if others.any():
            raise IntegrityError("a block that begins no node has steps")

    def _leave(self, reader: Hashable, head: int) -> None:
        readers = self._at[head]
        readers.remove(reader)
        if not readers:
            del self._at[head]

    def _replace(self, head: int, old: float | None, new: float | None) -> None:
        """Put one value in the place of another at a node, and above it as far as that shows."""
        one, steps, bags = self._table.scalars, self._table.steps, self._bags
        while True:
            before, bag = one.steps[head], bags.get(head)
            if bag is None and old is None and before != SUFFIX:
                bag = bags[head] = MinBag()
                bag.add(before)
            if bag is None:
                after = SUFFIX if new is None else new
            else:
                if new is not None:
                    bag.add(new)
                if old is not None:
                    bag.remove(old)
                after = bag.least
                if not bag:
                    del bags[head]
            if before == after:
                return
            steps[head] = after
            self.changed.add(head)
            parent = one.parent[head]
            if parent == NO_BLOCK:
                return
            head = one.head[parent]
            old = None if before == SUFFIX else before
            new = None if after == SUFFIX else after
