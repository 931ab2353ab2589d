"""A running estimate of a time between two calls: log-normal, so that long pauses have a tail."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

WINDOW = 32.0  # observations after which old ones have lost most of their weight
MIN_S, MAX_S = 1e-3, 1e6  # calls that overlap have followed each other at once
# A few observations that happen to agree are no certainty: one more of this spread is added.
_PRIOR_VARIANCE = 0.25
_NORMAL = NormalDist()


class Delay(NamedTuple):
    """A distribution of seconds. Immutable: ``observe`` returns the next one.

    Attributes:
        num_seen: observations, older ones with less weight; at most ``WINDOW``.
        mean: of the natural logarithm of the seconds.
        variance: of the same.
    """

    num_seen: float = 0.0
    mean: float = 0.0
    variance: float = 0.0

    def observe(self, seconds: float) -> Delay:
        """Return the estimate after one more delay; a number that is not finite counts nothing."""
        if not math.isfinite(seconds):
            return self
        value = math.log(min(max(seconds, MIN_S), MAX_S))
        count = min(self.num_seen + 1.0, WINDOW)
        change = value - self.mean
        mean = self.mean + change / count
        # Welford's update, with the weight of the newest observation.
        variance = self.variance + (change * (value - mean) - self.variance) / count
        return Delay(count, mean, max(0.0, variance))

    def quantile(self, share: float) -> float:
        """Return the seconds that this share of the delays do not exceed; 0 < share < 1."""
        return math.exp(self.mean + _NORMAL.inv_cdf(share) * math.sqrt(self._spread))

    @property
    def mean_s(self) -> float:
        """The expected seconds."""
        return math.exp(self.mean + self._spread / 2)

    @property
    def _spread(self) -> float:
        return (self.num_seen * self.variance + _PRIOR_VARIANCE) / (self.num_seen + 1.0)
