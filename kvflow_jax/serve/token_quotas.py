"""Tokens a minute: one token bucket for each tenant with such a quota."""

from __future__ import annotations

import math

from kvflow_jax.serve.errors import ApiError

WINDOW_S = 60.0  # a bucket holds the tokens of a minute
MAX_BUCKETS = 10_000


class _Bucket:
    __slots__ = ("level", "updated_s")

    def __init__(self, level: float, now: float) -> None:
        self.level, self.updated_s = level, now


class TokenQuotas:
    """Counts tokens by tenant. What is used is known at the end of a request, so that a bucket may
    fall below zero: its tenant then waits until it is filled again. Runs on the event loop.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def check(self, tenant: str, tokens_per_minute: int | None, now: float) -> None:
        """Raise while a tenant has used up its quota; None: it has none.

        Args:
            now: seconds of any clock.

        Raises:
            ApiError: 429, whose ``Retry-After`` is when the quota is above zero again.
        """
        if tokens_per_minute is None or tenant not in self._buckets:
            return
        bucket = self._fill(tenant, tokens_per_minute, now)
        if bucket.level > 0:
            return
        retry_after_s = math.floor(-bucket.level / tokens_per_minute * WINDOW_S) + 1
        raise ApiError(
            429,
            f"this key's quota of {tokens_per_minute} tokens a minute is used up; try again in "
            f"{retry_after_s} s",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(retry_after_s)},
        )

    def use(self, tenant: str, tokens_per_minute: int | None, num_tokens: int, now: float) -> None:
        """Count tokens that a tenant has used."""
        if tokens_per_minute is not None:
            self._fill(tenant, tokens_per_minute, now).level -= num_tokens

    def _fill(self, tenant: str, tokens_per_minute: int, now: float) -> _Bucket:
        bucket = self._buckets.get(tenant)
        if bucket is None:
            bucket = self._buckets[tenant] = _Bucket(float(tokens_per_minute), now)
            if len(self._buckets) > MAX_BUCKETS:  # keys that were replaced since
                del self._buckets[next(iter(self._buckets))]
        filled = bucket.level + (now - bucket.updated_s) * tokens_per_minute / WINDOW_S
        bucket.level, bucket.updated_s = min(filled, float(tokens_per_minute)), now
        return bucket
