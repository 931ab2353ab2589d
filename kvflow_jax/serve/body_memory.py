"""The memory that the bodies of all requests may take while they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from kvflow_jax.serve.errors import ApiError

RETRY_AFTER_S = 1


class BodyMemory:
    """A budget of bytes for the bodies that are being read. Runs on the event loop.

    Args:
        max_bytes: of all bodies.
        max_bytes_each: of the bodies of one tenant, whose clients may send them slowly.
    """

    def __init__(self, max_bytes: int, max_bytes_each: int) -> None:
        self._max_bytes, self._max_bytes_each = max_bytes, max_bytes_each
        self._used_bytes: Counter[str] = Counter()  # by tenant

    @property
    def used_bytes(self) -> int:
        return self._used_bytes.total()

    @contextmanager
    def reservation(self, tenant: str) -> Iterator[Reservation]:
        """Yield the share of one body, which grows as the body arrives; free it at the end."""
        one = Reservation(self, tenant)
        try:
            yield one
        finally:
            self._used_bytes[tenant] -= one.num_bytes
            if not self._used_bytes[tenant]:
                del self._used_bytes[tenant]

    def take(self, tenant: str, num_bytes: int) -> None:
        """Take bytes; raise a 503 ApiError if other bodies have taken them."""
        is_free = self.used_bytes + num_bytes <= self._max_bytes
        if not is_free or self._used_bytes[tenant] + num_bytes > self._max_bytes_each:
            raise ApiError(
                503,
                "the server is reading other large bodies; try again",
                code="too_many_bodies",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        self._used_bytes[tenant] += num_bytes


class Reservation:
    """The share of one body."""

    def __init__(self, memory: BodyMemory, tenant: str) -> None:
        self.num_bytes = 0
        self._memory, self._tenant = memory, tenant

    def grow(self, num_bytes: int) -> None:
        """Take more bytes; raise a 503 ApiError if other bodies have taken them."""
        self._memory.take(self._tenant, num_bytes)
        self.num_bytes += num_bytes
