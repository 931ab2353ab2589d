"""Multiset that tracks its minimum."""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

T = TypeVar("T", bound=tuple[float, ...])


class MinMultiset(Generic[T]):
    """Multiset of tuples that tracks the least of them."""

    __slots__ = ("_counts", "_heap")

    def __init__(self) -> None:
        self._counts: dict[T, int] = {}
        self._heap: list[T] = []  # every value of the multiset, and stale values

    def __len__(self) -> int:
        """Return the number of distinct values."""
        return len(self._counts)

    @property
    def minimum(self) -> T | None:
        """The least value; None if the multiset is empty."""
        heap, counts = self._heap, self._counts
        while heap and heap[0] not in counts:
            heapq.heappop(heap)
        return heap[0] if heap else None

    def add(self, value: T) -> None:
        """Add one occurrence of a value."""
        if value in self._counts:
            self._counts[value] += 1
            return
        self._counts[value] = 1
        heapq.heappush(self._heap, value)
        if len(self._heap) > 2 * len(self._counts) + 8:
            self._heap = sorted(self._counts)

    def remove(self, value: T) -> None:
        """Remove one occurrence of a value.

        Raises:
            KeyError: the multiset does not contain the value.
        """
        if self._counts[value] == 1:
            del self._counts[value]
        else:
            self._counts[value] -= 1
