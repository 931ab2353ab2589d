"""A queue by keys that change: what may be evicted or is to be loaded, what is first first."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any


class LazyQueue:
    """Items by id, lowest key first.

    An item is offered with its key of that moment, and offered anew when the key changes: of two
    entries for one item the later counts. Entries are never taken out when an item must stay after
    all, only seen to be stale when they come up; it must be offered again when it may go again.

    Args:
        may_go: whether an item may be taken now.
    """

    def __init__(self, may_go: Callable[[int], bool]) -> None:
        self._may_go = may_go
        # Keys, entry number, item: flat, because comparing nested ones takes twice as long.
        self._heap: list[tuple[Any, ...]] = []
        self._last: dict[int, int] = {}  # item -> number of its entry that counts
        self._numbers = count()

    def __len__(self) -> int:
        """Entries, stale ones too."""
        return len(self._heap)

    def offer(self, items: Iterable[int], keys: Iterable[list[float]]) -> None:
        """Add items that may go from now on, each with its key."""
        heap, last = self._heap, self._last
        for item, key in zip(items, keys, strict=True):
            number = next(self._numbers)
            last[item] = number
            heapq.heappush(heap, (*key, number, item))
        if len(heap) > 2 * len(last) + 64:
            # Once for as many offers as there are items: what it costs is spread over them.
            self._heap = [entry for entry in heap if last.get(entry[-1]) == entry[-2]]
            heapq.heapify(self._heap)

    def peek(self) -> tuple[list[float], int] | None:
        """Key and item that go next; None where there is none."""
        heap, last = self._heap, self._last
        while heap:
            *key, number, item = heap[0]
            if last.get(item) == number:
                if self._may_go(item):
                    return key, item
                del last[item]
            heapq.heappop(heap)
        return None

    def pop(self) -> int | None:
        """The item that goes next; None where there is none."""
        heap, last = self._heap, self._last
        while heap:
            entry = heapq.heappop(heap)
            item: int = entry[-1]
            if last.get(item) == entry[-2]:
                del last[item]
                if self._may_go(item):
                    return item
        return None

    def items(self) -> set[int]:
        """All that are on offer and may go."""
        return {item for item in self._last if self._may_go(item)}
