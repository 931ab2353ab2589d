"""A map that keeps the values used last, in constant time and without a linked list."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class RecentMap(Generic[Key, Value]):
    """Two generations of values: what is used moves to the young one; the old one is dropped whole.

    The last ``capacity`` values that were used are kept for certain, and up to twice as many.

    Args:
        on_drop: called with each key and value that was dropped; it must not change the map.
    """

    def __init__(self, capacity: int, on_drop: Callable[[Key, Value], object]) -> None:
        self.capacity = capacity
        self._on_drop = on_drop
        self._young: dict[Key, Value] = {}
        self._old: dict[Key, Value] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def __contains__(self, key: Key) -> bool:
        return key in self._young or key in self._old

    def get(self, key: Key) -> Value | None:
        """Return a value, None if there is none; this is no use of it."""
        value = self._young.get(key)
        return self._old.get(key) if value is None else value

    def use(self, key: Key) -> Value | None:
        """Return a value, and keep it longer than those not used since."""
        value = self._young.get(key)
        if value is None and (value := self._old.pop(key, None)) is not None:
            self.put(key, value)
        return value

    def put(self, key: Key, value: Value) -> None:
        """Add a value. The key must be new, or just have been taken out."""
        if len(self._young) >= self.capacity:
            dropped, self._old, self._young = self._old, self._young, {}
            for old_key, old_value in dropped.items():
                self._on_drop(old_key, old_value)
        self._young[key] = value

    def pop(self, key: Key) -> Value | None:
        """Remove a value and return it, without ``on_drop``; None if there is none."""
        value = self._young.pop(key, None)
        return self._old.pop(key, None) if value is None else value

    def items(self) -> Iterator[tuple[Key, Value]]:
        """Return all values, the old generation first."""
        yield from self._old.items()
        yield from self._young.items()

    def newest(self) -> Iterator[tuple[Key, Value]]:
        """Return all values, the one added or used last of each generation first."""
        yield from reversed(self._young.items())
        yield from reversed(self._old.items())
