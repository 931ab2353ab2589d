"""A queue by keys that change: what may be evicted or is to be loaded, what is first first."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from itertools import count

_Key = tuple[float, ...]


class LazyQueue:
    """Items by id, lowest key first.

    An item is offered with its key of that moment, and offered anew when the key changes: of two
    entries for one item the later counts. Entries are never taken out when an item must stay after
    all, only seen to be stale when they come up; it must be offered again when it may go again.

    Keys compare lexicographically. Items whose keys agree in all but the last number share a heap,
    as many blocks do that are as many steps away: small heaps of flat entries are what makes
    tens of thousands of items cheap.

    Args:
        may_go: whether an item may be taken now.
    """

    def __init__(self, may_go: Callable[[int], bool]) -> None:
        self._may_go = may_go
        self._heaps: dict[_Key, list[tuple[float, int, int]]] = {}  # last of key, entry no., item
        self._firsts: list[_Key] = []  # a heap of what those are keyed by
        self._num_entries = 0
        self._last: dict[int, int] = {}  # item -> number of its entry that counts
        self._numbers = count()

    def __len__(self) -> int:
        """Entries, stale ones too."""
        return self._num_entries

    def offer(self, items: Iterable[int], keys: Iterable[list[float]]) -> None:
        """Add items that may go from now on, each with its key."""
        for item, key in zip(items, keys, strict=True):
            number = self._last[item] = next(self._numbers)
            heapq.heappush(self._heap_of(tuple(key[:-1])), (key[-1], number, item))
            self._num_entries += 1
        if self._num_entries > 2 * len(self._last) + 64:
            self._compact()

    def peek(self) -> tuple[list[float], int] | None:
        """Key and item that go next; None where there is none."""
        heap = self._first()
        if heap is None:
            return None
        end, _, item = heap[0]
        return [*self._firsts[0], end], item

    def pop(self) -> int | None:
        """The item that goes next; None where there is none."""
        heap = self._first()
        if heap is None:
            return None
        item = heapq.heappop(heap)[2]
        self._num_entries -= 1
        del self._last[item]
        return item

    def items(self) -> set[int]:
        """All that are on offer and may go."""
        return {item for item in self._last if self._may_go(item)}

    def _first(self) -> list[tuple[float, int, int]] | None:
        """The heap on whose top is what goes next; stale entries before it are dropped."""
        last, may_go = self._last, self._may_go
        while self._firsts:
            heap = self._heaps[self._firsts[0]]
            while heap:
                _, number, item = heap[0]
                if last.get(item) == number:
                    if may_go(item):
                        return heap
                    del last[item]
                heapq.heappop(heap)
                self._num_entries -= 1
            del self._heaps[heapq.heappop(self._firsts)]
        return None

    def _heap_of(self, first: _Key) -> list[tuple[float, int, int]]:
        heap = self._heaps.get(first)
        if heap is None:
            heap = self._heaps[first] = []
            heapq.heappush(self._firsts, first)
        return heap

    def _compact(self) -> None:
        """Drop stale entries; once for as many offers as there are items."""
        last = self._last
        for first, heap in list(self._heaps.items()):
            current = [entry for entry in heap if last.get(entry[2]) == entry[1]]
            heapq.heapify(current)
            if current:
                self._heaps[first] = current
            else:
                del self._heaps[first]
        self._firsts = sorted(self._heaps)
        self._num_entries = sum(map(len, self._heaps.values()))
