"""Notices a step that does not end, as on a device that hangs, from a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_CHECK_INTERVAL_S = 1.0
# A step with a long context takes this many times as long as the longest so far, at most.
_FACTOR = 3.0


class StepWatchdog:
    """Calls ``on_stuck`` once a step takes longer than any step should.

    The limit grows with the longest step, because a large model on a small CPU takes minutes for
    what others do in a second.

    Args:
        timeout_s: the limit in seconds, at least.
        longest_s: seconds of the longest step that is expected.
        on_stuck: called on the watchdog's thread, once for each such step, with the seconds that
            the step has taken so far.
        now: monotonic time in seconds.
    """

    def __init__(
        self,
        timeout_s: float,
        longest_s: float,
        on_stuck: Callable[[float], object],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout_s, self._longest_s = timeout_s, longest_s
        self._on_stuck, self._now = on_stuck, now
        self._began_s: float | None = None
        self._is_stuck = False
        self._is_stopped = threading.Event()

    def start(self) -> None:
        """Start the watchdog's thread."""
        threading.Thread(target=self._run, name="kvflow-watchdog", daemon=True).start()

    def stop(self) -> None:
        """End the watchdog's thread."""
        self._is_stopped.set()

    @property
    def limit_s(self) -> float:
        """Seconds after which a step is stuck."""
        return max(self._timeout_s, _FACTOR * self._longest_s)

    @property
    def is_stuck(self) -> bool:
        """True while a step takes longer than the limit."""
        return self._is_stuck

    def begin_step(self) -> None:
        """Note the start of a step; called on the engine's thread."""
        self._began_s = self._now()

    def end_step(self) -> None:
        """Note the end of a step; called on the engine's thread."""
        if self._began_s is not None:
            self._longest_s = max(self._longest_s, self._now() - self._began_s)
        self._began_s, self._is_stuck = None, False

    def check(self) -> None:
        """Call ``on_stuck`` if the step has just exceeded the limit."""
        began_s = self._began_s
        if began_s is None or self._is_stuck:
            return
        taken_s = self._now() - began_s
        if taken_s > self.limit_s:
            self._is_stuck = True
            self._on_stuck(taken_s)

    def _run(self) -> None:
        while not self._is_stopped.wait(_CHECK_INTERVAL_S):
            self.check()
