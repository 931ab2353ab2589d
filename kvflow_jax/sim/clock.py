"""Virtual time: a clock that advances only when it is asked to."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from itertools import count


class VirtualClock:
    """A ``Clock`` of virtual seconds from 0 and its scheduled events.

    Events of the same time run in the order in which they were scheduled.
    """

    def __init__(self) -> None:
        self._now = 0.0
        # A heap of (time, sequence number, callback).
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._sequence = count()

    def now(self) -> float:
        return self._now

    @property
    def next_event_s(self) -> float | None:
        """Time of the next event; None if none is scheduled."""
        return self._events[0][0] if self._events else None

    def schedule(self, time_s: float, callback: Callable[[], object]) -> None:
        """Run ``callback`` at ``time_s``, or at the current time if that is later."""
        heapq.heappush(self._events, (max(time_s, self._now), next(self._sequence), callback))

    def advance_to(self, time_s: float) -> None:
        """Advance to ``time_s`` and run the events up to then; never go back in time."""
        while self._events and self._events[0][0] <= time_s:
            self._run_next()
        self._now = max(self._now, time_s)

    def advance(self, seconds: float) -> None:
        """Advance by ``seconds`` and run the events up to then."""
        self.advance_to(self._now + seconds)

    def advance_to_next_event(self) -> bool:
        """Advance to the next event and run it; return False if there is none."""
        if not self._events:
            return False
        self._run_next()
        return True

    def wait(self, event: threading.Event, timeout_s: float | None = None) -> None:
        """Advance until ``event`` is set, ``timeout_s`` have passed or no event is left."""
        end_s = None if timeout_s is None else self._now + timeout_s
        while not event.is_set() and self._events:
            if end_s is not None and self._events[0][0] > end_s:
                break
            self._run_next()
        if end_s is not None and not event.is_set():
            self.advance_to(end_s)

    def _run_next(self) -> None:
        self._now, _, callback = heapq.heappop(self._events)
        callback()
