"""Conversations between their calls: what each will be continued from counts until a time."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from itertools import count

from kvflow_jax.cache.reuse_tracker import UNKNOWN_STEPS
from kvflow_jax.control.run_tracker import Run, RunTracker
from kvflow_jax.workflow.hints import Hints

MAX_HISTORIES = 200_000


@dataclass(frozen=True, slots=True)
class _History:
    """A conversation that will be continued, or what a caller asked to keep."""

    expires_s: float
    run: Run | None
    agent: str | None


class SessionStore:
    """Knows of each history until when it is kept, and which agent of which run continues it.

    Args:
        progress: has a history wait for as long as its agent does.
        release: is told of each that is not kept any longer, and of its run.
    """

    def __init__(
        self, progress: RunTracker, release: Callable[[Hashable, Run | None], object]
    ) -> None:
        self._run_tracker, self._release = progress, release
        self._sessions: OrderedDict[Hashable, _History] = OrderedDict()  # longest kept first
        self._expiries: list[tuple[float, int, Hashable]] = []  # a heap; some are out of date
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._sessions)

    def keep(self, reader: Hashable, run: Run | None, agent: str | None, expires_s: float) -> float:
        """Keep a history, or keep it longer; its steps-to-execution."""
        self._take(reader)
        self._sessions[reader] = _History(expires_s, run, agent)
        heapq.heappush(self._expiries, (expires_s, next(self._numbers), reader))
        if len(self._expiries) > 2 * len(self._sessions) + 64:
            self._expiries = [
                (history.expires_s, next(self._numbers), reader)
                for reader, history in self._sessions.items()
            ]
            heapq.heapify(self._expiries)
        while len(self._sessions) > MAX_HISTORIES:
            self.forget(next(iter(self._sessions)))
        if run is None or agent is None:
            return UNKNOWN_STEPS
        return self._run_tracker.attach(run, agent, reader)

    def hold(self, reader: Hashable) -> None:
        """A call continues it, however long that waits: keep it until the call has ended."""
        history = self._sessions.get(reader)
        if history is not None:
            self._sessions[reader] = replace(history, expires_s=math.inf)

    def forget(self, reader: Hashable) -> None:
        """Nobody continues it; fine where it is not kept."""
        history = self._take(reader)
        if history is not None:
            self._release(reader, history.run)

    def end(self, run: Run) -> None:
        """A run is over, and so are the conversations of its agents."""
        for readers in list(run.readers.values()):
            for reader in list(readers):
                self.forget(reader)

    def expire(self, now: float) -> None:
        """Forget those whose time is up."""
        while self._expiries and self._expiries[0][0] <= now:
            expires_s, _, reader = heapq.heappop(self._expiries)
            history = self._sessions.get(reader)
            if history is not None and history.expires_s == expires_s:
                self.forget(reader)

    def _take(self, reader: Hashable) -> _History | None:
        history = self._sessions.pop(reader, None)
        if history is not None and history.run is not None and history.agent is not None:
            self._run_tracker.detach(history.run, history.agent, reader)
        return history


def history_of(client: str, hints: Hints) -> Hashable:
    """Names what a call leaves behind: its conversation, or else what its agent has in this run."""
    if hints.session_id is not None:
        return "session", client, hints.session_id
    return "kept", client, hints.workflow_id, hints.agent_id
