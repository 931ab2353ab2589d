"""The backlog: running and waiting requests by tenant, its bounds, and how fast it drains."""

from __future__ import annotations

import math
from collections import deque

from kvflow_jax.errors import QueueFullError

# All tenants together may have this many times the bound of one.
TOTAL_FACTOR = 4
_MAX_ENDS = 128  # recent ends from which a rate is measured
MAX_RETRY_AFTER_S = 3600


class _Account:
    """The requests of one tenant, or of all of them.

    Attributes:
        num: requests that run or wait.
        since_s: when the first of the measured requests was there; rates count from here.
        ends: when its last requests ended.
    """

    __slots__ = ("ends", "num", "since_s")

    def __init__(self, now: float) -> None:
        self.num = 0
        self.since_s = now
        self.ends: deque[float] = deque(maxlen=_MAX_ENDS)

    def end(self, now: float) -> None:
        self.num -= 1
        if len(self.ends) == _MAX_ENDS:
            self.since_s = self.ends[0]
        self.ends.append(now)

    def wait_s(self, num: int, now: float) -> float:
        """Return the estimated seconds until ``num`` more have ended, at the measured rate.

        Before the first end the time that has passed stands for the interval of one.
        """
        return num * (now - self.since_s) / max(1, len(self.ends))


class Backlog:
    """Counts requests by tenant, and refuses those beyond the bounds. Not thread-safe.

    A tenant may have ``max_pending`` requests, and no more than places are left for others: the
    more tenants fill the backlog, the less each may have (dynamic thresholds, Choudhury and Hahne
    1998). A tenant that comes later therefore always finds a place.

    Args:
        max_pending: bound of each tenant.
    """

    def __init__(self, max_pending: int) -> None:
        self._max_pending, self._max_total = max_pending, TOTAL_FACTOR * max_pending
        self._accounts: dict[str, _Account] = {}  # of tenants with requests
        self._total = _Account(0.0)

    def __len__(self) -> int:
        return self._total.num

    def check(self, tenant: str, num: int, now: float, max_pending: int | None = None) -> None:
        """Raise unless a tenant may add ``num`` requests.

        Args:
            now: seconds of the caller's clock.
            max_pending: a lower bound of this tenant; None: that of all.

        Raises:
            QueueFullError: says when to retry, from the rate at which requests end.
        """
        limit = min(self._max_pending, max_pending or self._max_pending)
        account = self._accounts.get(tenant)
        num_own = 0 if account is None else account.num
        num_excess = num_own + num - limit
        if account is not None and num_excess > 0:
            raise QueueFullError(
                f"{num_own} of your requests run or wait, the bound is {limit}; try again later, "
                "or raise max_waiting",
                _retry_after(account.wait_s(num_excess, now)),
            )
        num_free = self._max_total - len(self)
        if (num_excess := num_own + num - num_free) > 0:
            raise QueueFullError(
                "the queue is full with the requests of many; try again later",
                _retry_after(self._total.wait_s(num_excess, now)),
            )

    def retry_after_s(self, tenant: str, now: float) -> int:
        """Return the estimated seconds until the next request of a tenant ends; at least 1."""
        account = self._accounts.get(tenant)
        return 1 if account is None else _retry_after(account.wait_s(1, now))

    def add(self, tenant: str, now: float) -> None:
        """Count a request, which ``check`` has accepted."""
        if tenant not in self._accounts:
            self._accounts[tenant] = _Account(now)
        if not self._total.num:
            self._total = _Account(now)
        self._accounts[tenant].num += 1
        self._total.num += 1

    def end(self, tenant: str, now: float) -> None:
        """Count the end of a request."""
        account = self._accounts[tenant]
        account.end(now)
        self._total.end(now)
        if not account.num:
            del self._accounts[tenant]


def _retry_after(seconds: float) -> int:
    return max(1, min(math.ceil(seconds), MAX_RETRY_AFTER_S))
