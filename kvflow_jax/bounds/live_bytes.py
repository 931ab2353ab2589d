"""Bytes of the values of each tenant, for as long as anything refers to them."""

from __future__ import annotations

from collections import Counter, deque
from weakref import finalize


class LiveBytes:
    """Counts the bytes of values by tenant until nothing refers to them any more.

    A cache counts what it keeps; this counts what it has dropped and requests still use, too. Not
    thread-safe, though values may die on any thread.
    """

    def __init__(self) -> None:
        self._num_bytes: Counter[str] = Counter()  # by tenant
        # Values may die in the middle of a method: they are subtracted by the next one.
        self._dead: deque[tuple[str, int]] = deque()

    def add(self, tenant: str, value: object, num_bytes: int) -> None:
        """Count ``num_bytes`` for a tenant until nothing refers to ``value`` any more."""
        self._subtract_dead()
        finalize(value, self._dead.append, (tenant, num_bytes)).atexit = False
        self._num_bytes[tenant] += num_bytes

    def num_bytes(self, tenant: str) -> int:
        """Return the bytes of a tenant's values."""
        self._subtract_dead()
        return self._num_bytes[tenant]

    def _subtract_dead(self) -> None:
        while self._dead:
            tenant, num_bytes = self._dead.popleft()
            self._num_bytes[tenant] -= num_bytes
            if not self._num_bytes[tenant]:
                del self._num_bytes[tenant]
