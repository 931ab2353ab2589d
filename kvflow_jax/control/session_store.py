"""Conversations between their calls: what each will be continued from counts until a time."""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from itertools import count

from kvflow_jax.cache.reuse_tracker import UNKNOWN_STEPS
from kvflow_jax.control.run_tracker import Progress, Run
from kvflow_jax.workflow.hints import Hints

MAX_HISTORIES = 200_000


@dataclass(frozen=True, slots=True)
class _History:
    """A conversation that will be continued, or what a caller asked to keep."""

    expires_s: float
    run: Run | None
    agent: str | None


class Histories:
    """Knows of each history until when it is kept, and which agent of which run continues it.

    Args:
        progress: has a history wait for as long as its agent does.
        let_go: is told of each that is not kept any longer, and of its run.
    """

    def __init__(
        self, progress: Progress, let_go: Callable[[Hashable, Run | None], object]
    ) -> None:
        self._progress, self._let_go = progress, let_go
        self._histories: OrderedDict[Hashable, _History] = OrderedDict()  # longest kept first
        self._expiries: list[tuple[float, int, Hashable]] = []  # a heap; some are out of date
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._histories)

    def keep(self, owner: Hashable, run: Run | None, agent: str | None, expires_s: float) -> float:
        """Keep a history, or keep it longer; its steps-to-execution."""
        self._take(owner)
        self._histories[owner] = _History(expires_s, run, agent)
        heapq.heappush(self._expiries, (expires_s, next(self._numbers), owner))
        if len(self._expiries) > 2 * len(self._histories) + 64:
            self._expiries = [
                (history.expires_s, next(self._numbers), owner)
                for owner, history in self._histories.items()
            ]
            heapq.heapify(self._expiries)
        while len(self._histories) > MAX_HISTORIES:
            self.forget(next(iter(self._histories)))
        if run is None or agent is None:
            return UNKNOWN_STEPS
        return self._progress.attach(run, agent, owner)

    def hold(self, owner: Hashable) -> None:
        """A call continues it, however long that waits: keep it until the call has ended."""
        history = self._histories.get(owner)
        if history is not None:
            self._histories[owner] = replace(history, expires_s=math.inf)

    def forget(self, owner: Hashable) -> None:
        """Nobody continues it; fine where it is not kept."""
        history = self._take(owner)
        if history is not None:
            self._let_go(owner, history.run)

    def end(self, run: Run) -> None:
        """A run is over, and so are the conversations of its agents."""
        for owners in list(run.owners.values()):
            for owner in list(owners):
                self.forget(owner)

    def expire(self, now: float) -> None:
        """Forget those whose time is up."""
        while self._expiries and self._expiries[0][0] <= now:
            expires_s, _, owner = heapq.heappop(self._expiries)
            history = self._histories.get(owner)
            if history is not None and history.expires_s == expires_s:
                self.forget(owner)

    def _take(self, owner: Hashable) -> _History | None:
        history = self._histories.pop(owner, None)
        if history is not None and history.run is not None and history.agent is not None:
            self._progress.detach(history.run, history.agent, owner)
        return history


def history_of(client: str, hints: Hints) -> Hashable:
    """Names what a call leaves behind: its conversation, or else what its agent has in this run."""
    if hints.session_id is not None:
        return "session", client, hints.session_id
    return "kept", client, hints.workflow_id, hints.agent_id
