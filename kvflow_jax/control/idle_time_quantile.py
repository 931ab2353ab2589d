"""A running estimate of how long runs idle between their calls, for a tool or for a person."""

from __future__ import annotations

QUANTILE = 0.8
_STEP_SIZE = 0.1  # relative change of the estimate per sample


class IdleTimeQuantile:
    """Estimates a quantile of the idle times by stochastic approximation.

    Attributes:
        long_s: the estimated ``QUANTILE`` of recent idle times, seconds; a longer one is long.
    """

    def __init__(self) -> None:
        self.long_s = 1.0

    def observe(self, idle_s: float) -> None:
        """Add one idle time, seconds."""
        direction = QUANTILE if idle_s > self.long_s else QUANTILE - 1
        self.long_s = max(1e-3, self.long_s * (1 + _STEP_SIZE * direction))
