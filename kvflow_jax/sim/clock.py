"""Time that passes when somebody says so."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from itertools import count


class VirtualClock:
    """Seconds from 0 on, and what is to happen when. Events of the same time run in order."""

    def __init__(self) -> None:
        self._now = 0.0
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = count()

    def now(self) -> float:
        return self._now

    @property
    def next_event_s(self) -> float | None:
        """When something happens next; None where nothing is due."""
        return self._events[0][0] if self._events else None

    def schedule(self, time_s: float, call: Callable[[], object]) -> None:
        """Run ``call`` once it is ``time_s``; a time that is past is now."""
        heapq.heappush(self._events, (max(time_s, self._now), next(self._numbers), call))

    def advance_to(self, time_s: float) -> None:
        """Let time pass, running the events on the way; time never runs backwards."""
        while self._events and self._events[0][0] <= time_s:
            self._run_next()
        self._now = max(self._now, time_s)

    def advance(self, seconds: float) -> None:
        self.advance_to(self._now + seconds)

    def advance_to_next_event(self) -> bool:
        """Let time pass to the next event and run it; False where there is none."""
        if not self._events:
            return False
        self._run_next()
        return True

    def wait(self, event: threading.Event, timeout_s: float | None = None) -> None:
        """Let time pass until ``event`` is set, ``timeout_s`` are over or nothing can happen."""
        end_s = None if timeout_s is None else self._now + timeout_s
        while not event.is_set() and self._events:
            if end_s is not None and self._events[0][0] > end_s:
                break
            self._run_next()
        if end_s is not None and not event.is_set():
            self.advance_to(end_s)

    def _run_next(self) -> None:
        time_s, _, call = heapq.heappop(self._events)
        self._now = time_s
        call()
