"""Bytes of what tenants hold, for as long as anything refers to it."""

from __future__ import annotations

from collections import Counter, deque
from itertools import count
from weakref import ref


class LiveBytes:
    """Counts the bytes of values by tenant until nothing refers to them any more.

    A cache counts what it keeps; this counts what it has dropped and requests still use, too. Not
    thread-safe, though values may die on any thread.
    """

    def __init__(self) -> None:
        self._num_bytes: Counter[str] = Counter()  # by tenant
        self._refs: dict[int, ref[object]] = {}
        self._keys = count()
        # Values may die in the middle of a method: they are subtracted by the next one.
        self._dead: deque[tuple[int, str, int]] = deque()

    def add(self, tenant: str, value: object, num_bytes: int) -> None:
        """Count a value of a tenant from now on."""
        self._subtract_dead()
        key = next(self._keys)
        self._refs[key] = ref(value, lambda _: self._dead.append((key, tenant, num_bytes)))
        self._num_bytes[tenant] += num_bytes

    def num_bytes(self, tenant: str) -> int:
        """Return the bytes of a tenant's values."""
        self._subtract_dead()
        return self._num_bytes[tenant]

    def _subtract_dead(self) -> None:
        while self._dead:
            key, tenant, num_bytes = self._dead.popleft()
            del self._refs[key]
            self._num_bytes[tenant] -= num_bytes
            if not self._num_bytes[tenant]:
                del self._num_bytes[tenant]
