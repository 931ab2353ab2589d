"""How long decode steps take, and how many drafted tokens are worth a row each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

_EWMA_WEIGHT = 0.2  # of the newest step
_GROWTH = 0.01  # assumed of a step for each row more, until one of that size was measured
_MAX_RATIO = 2.0  # of a step to what was expected; more is another program's doing
_MAX_AGE = 512  # steps after which a time is measured again


class StepTimes:
    """Seconds of decode steps by number of rows, from the end of one step to the end of the next.

    Steps that the host plans ahead, while the device computes the one before, are kept apart from
    those that wait for its tokens: the difference is the host's share.
    """

    def __init__(self) -> None:
        self._seconds: dict[tuple[bool, int], tuple[float, int]] = {}  # with the step's number
        self._num_steps = 0

    def record(self, num_rows: int, seconds: float, *, is_ahead: bool) -> None:
        """Record a decode step of a shape with ``num_rows`` rows, padding included."""
        self._num_steps += 1
        if seconds <= 0:
            return
        if self._seconds:
            seconds = min(seconds, _MAX_RATIO * self.seconds(num_rows, is_ahead=is_ahead))
        old = self._measured(num_rows, is_ahead)
        new = seconds if old is None else old + _EWMA_WEIGHT * (seconds - old)
        self._seconds[is_ahead, num_rows] = new, self._num_steps

    def seconds(self, num_rows: int, *, is_ahead: bool) -> float:
        """Return the expected seconds of a step; 1 before any was measured."""
        own = self._measured(num_rows, is_ahead)
        if own is not None:
            return own
        known = [
            (rows, seconds)
            for (_, rows), (seconds, step) in self._seconds.items()
            if self._num_steps - step <= _MAX_AGE
        ]
        if not known:
            return 1 + _GROWTH * num_rows
        below = [one for one in known if one[0] <= num_rows]
        rows, seconds = max(below) if below else min(known)
        return seconds * (1 + _GROWTH * max(0, num_rows - rows))

    def num_worthwhile(
        self, reached: Sequence[float], num_decoding: int, sizes: Sequence[int]
    ) -> int:
        """Return how many drafted tokens give the most tokens per second.

        Args:
            reached: how likely each drafted token is accepted, highest first.
            num_decoding: rows of the step without drafts, each of which gives a token.
            sizes: rows that steps may have, padding included, in rising order.
        """
        plain = next(size for size in sizes if size >= num_decoding)
        best, best_rate = 0, num_decoding / self.seconds(plain, is_ahead=True)
        expected = list(accumulate(reached, initial=float(num_decoding)))
        for size in sizes:
            num = min(size - num_decoding, len(reached))
            if num > 0:
                rate = expected[num] / self.seconds(size, is_ahead=False)
                if rate > best_rate:
                    best, best_rate = num, rate
            if num == len(reached):
                break
        return best

    def _measured(self, num_rows: int, is_ahead: bool) -> float | None:
        seconds, step = self._seconds.get((is_ahead, num_rows), (0.0, 0))
        return seconds if seconds and self._num_steps - step <= _MAX_AGE else None
