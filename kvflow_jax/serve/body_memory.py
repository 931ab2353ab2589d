"""The memory that the bodies of all unfinished requests may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kvflow_jax.serve.errors import ApiError


class BodyMemory:
    """A budget of bytes for the bodies of requests until these end. Runs on the event loop.

    What a body becomes (texts, hints, parameters) is kept until then, and grows with it. A tenant
    may have as many bytes as it leaves for others, at most half of them, as in ``Backlog``: a
    tenant that comes later always finds some.

    Args:
        max_bytes: of all bodies.
        on_refused: called with the tenant of a body that is refused; returns the estimated seconds
            until the next request of the tenant ends.
    """

    def __init__(self, max_bytes: int, on_refused: Callable[[str], int]) -> None:
        self._max_bytes, self._on_refused = max_bytes, on_refused
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

    def take(self, tenant: str, num_bytes: int, num_before: int) -> None:
        """Take bytes for a body.

        Args:
            num_before: bytes that the body has taken before.

        Raises:
            ApiError: 429 if other bodies of the tenant have taken them; 503 if those of others.
        """
        num_own = self._used_bytes[tenant]
        num_left = self._max_bytes - self.used_bytes - num_bytes
        if num_own + num_bytes > num_left:
            raise self._error(tenant, num_own - num_before)
        self._used_bytes[tenant] += num_bytes

    def _error(self, tenant: str, num_own: int) -> ApiError:
        status, seconds = 503, self._on_refused(tenant)
        message = "the server is busy with the bodies of many requests; try again"
        if num_own:
            status = 429
            message = (
                f"the bodies of your unfinished requests have {num_own / 2**20:.0f} MiB; try again "
                "when some of them have ended"
            )
        headers = {"Retry-After": str(seconds)}
        return ApiError(status, message, code="too_many_bodies", headers=headers)


class Reservation:
    """The share of one body."""

    def __init__(self, memory: BodyMemory, tenant: str) -> None:
        self.num_bytes = 0
        self._memory, self._tenant = memory, tenant

    def grow(self, num_bytes: int) -> None:
        """Take more bytes; raise the ApiError of ``BodyMemory.take``."""
        self._memory.take(self._tenant, num_bytes, self.num_bytes)
        self.num_bytes += num_bytes
