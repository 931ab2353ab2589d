"""How long runs wait between their calls: for a tool, or a person."""

from __future__ import annotations

LONG = 0.8  # of all waits, the share that are not long
_FRESH = 0.1  # how far a wait moves the estimate of a long one


class IdleTimeQuantile:
    """Estimates from which time on a wait is long.

    Attributes:
        long_s: a share ``LONG`` of the waits of late were shorter, seconds.
    """

    def __init__(self) -> None:
        self.long_s = 1.0

    def note(self, wait_s: float) -> None:
        """A run has waited so long."""
        share = LONG if wait_s > self.long_s else LONG - 1
        self.long_s = max(1e-3, self.long_s * (1 + _FRESH * share))
