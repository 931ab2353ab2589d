"""A queue in which tenants take turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class TenantQueue(Generic[Item]):
    """First in, first out for the items of each tenant; round robin between tenants."""

    def __init__(self) -> None:
        # The tenant whose turn comes next first; none without items.
        self._queues: OrderedDict[str, deque[Item]] = OrderedDict()
        self._num_items = 0

    def __len__(self) -> int:
        return self._num_items

    def push(self, tenant: str, item: Item) -> None:
        """Add an item behind the others of its tenant."""
        self._queues.setdefault(tenant, deque()).append(item)
        self._num_items += 1

    def pop(self) -> Item:
        """Remove and return the next item; raise IndexError if there is none."""
        if not self._queues:
            raise IndexError("pop from an empty queue")
        tenant, items = self._queues.popitem(last=False)
        item = items.popleft()
        self._num_items -= 1
        if items:
            self._queues[tenant] = items
        return item

    def clear(self) -> None:
        """Remove all items."""
        self._queues.clear()
        self._num_items = 0
