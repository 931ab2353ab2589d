"""Priority queue whose keys change: blocks to be evicted or loaded, lowest key first."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from itertools import count

_Key = tuple[float, ...]
_Entry = tuple[float, int, int]  # last number of the key, entry number, item


class LazyQueue:
    """Priority queue of item ids with lazy deletion, lowest key first.

    An item is pushed with its current key, and pushed again when the key changes: the newest entry
    of an item counts. An entry is not removed when its item becomes ineligible; it is discarded
    when it reaches the top, and the item must be pushed again once it is eligible again.

    Keys compare lexicographically. Items whose keys agree in all but the last number share a heap,
    as do the many blocks with the same steps-to-execution: small heaps of flat entries make tens
    of thousands of items cheap.

    Args:
        is_eligible: whether an item may be returned now.
    """

    def __init__(self, is_eligible: Callable[[int], bool]) -> None:
        self._is_eligible = is_eligible
        self._heaps: dict[_Key, list[_Entry]] = {}  # by the key without its last number
        self._prefixes: list[_Key] = []  # heap of the keys of ``_heaps``
        self._num_entries = 0
        self._newest: dict[int, int] = {}  # item -> number of its entry that counts
        self._numbers = count()

    def __len__(self) -> int:
        """Return the number of entries, stale ones included."""
        return self._num_entries

    def push(self, items: Iterable[int], keys: Iterable[Sequence[float]]) -> None:
        """Add eligible items, or change their keys; one key for each item."""
        for item, key in zip(items, keys, strict=True):
            number = self._newest[item] = next(self._numbers)
            heapq.heappush(self._heap_of(tuple(key[:-1])), (key[-1], number, item))
            self._num_entries += 1
        if self._num_entries > 2 * len(self._newest) + 64:
            self._compact()

    def peek(self) -> tuple[list[float], int] | None:
        """Return the lowest key and its item; None if no item is eligible."""
        heap = self._top_heap()
        if heap is None:
            return None
        last, _, item = heap[0]
        return [*self._prefixes[0], last], item

    def pop(self) -> int | None:
        """Remove and return the item with the lowest key; None if no item is eligible."""
        newest = self._newest
        while self._prefixes:
            heap = self._heaps[self._prefixes[0]]
            while heap:
                _, number, item = heapq.heappop(heap)
                self._num_entries -= 1
                if newest.get(item) == number:
                    del newest[item]
                    if self._is_eligible(item):
                        return item
            del self._heaps[heapq.heappop(self._prefixes)]
        return None

    def items(self) -> set[int]:
        """Return the queued items that are eligible."""
        return {item for item in self._newest if self._is_eligible(item)}

    def _top_heap(self) -> list[_Entry] | None:
        """Return the heap whose top is the next item, after discarding stale entries before it."""
        newest, is_eligible = self._newest, self._is_eligible
        while self._prefixes:
            heap = self._heaps[self._prefixes[0]]
            while heap:
                _, number, item = heap[0]
                if newest.get(item) == number:
                    if is_eligible(item):
                        return heap
                    del newest[item]
                heapq.heappop(heap)
                self._num_entries -= 1
            del self._heaps[heapq.heappop(self._prefixes)]
        return None

    def _heap_of(self, prefix: _Key) -> list[_Entry]:
        heap = self._heaps.get(prefix)
        if heap is None:
            heap = self._heaps[prefix] = []
            heapq.heappush(self._prefixes, prefix)
        return heap

    def _compact(self) -> None:
        """Remove stale entries; amortized over at least as many pushes as there are items."""
        newest = self._newest
        for prefix, heap in list(self._heaps.items()):
            current = [entry for entry in heap if newest.get(entry[2]) == entry[1]]
            heapq.heapify(current)
            if current:
                self._heaps[prefix] = current
            else:
                del self._heaps[prefix]
        self._prefixes = sorted(self._heaps)
        self._num_entries = sum(map(len, self._heaps.values()))


class TenantQueues:
    """A ``LazyQueue`` for the items of each tenant."""

    def __init__(self, is_eligible: Callable[[int], bool]) -> None:
        self._is_eligible = is_eligible
        self._queues: dict[int, LazyQueue] = {}

    def push(self, tenant: int, items: Iterable[int], keys: Iterable[Sequence[float]]) -> None:
        """Add eligible items of a tenant, or change their keys; one key for each item."""
        if tenant not in self._queues:
            self._queues[tenant] = LazyQueue(self._is_eligible)
        self._queues[tenant].push(items, keys)

    def top(self, tenant: int | None = None) -> tuple[list[float], int, LazyQueue] | None:
        """Return the lowest key, its item, and the queue that has it; None if none is eligible.

        Args:
            tenant: whose item; None: of any.
        """
        if tenant is not None:
            queues = [queue] if (queue := self._queues.get(tenant)) else []
        else:
            queues = [*self._queues.values()]
        tops = [(*top, queue) for queue in queues if (top := queue.peek()) is not None]
        return min(tops, key=lambda top: top[0], default=None)

    def items(self) -> set[int]:
        """Return the queued items that are eligible."""
        return {item for queue in self._queues.values() for item in queue.items()}
