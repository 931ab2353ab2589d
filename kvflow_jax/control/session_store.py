"""Conversation histories between their calls, each kept until a time to live has passed."""

from __future__ import annotations

import heapq
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from kvflow_jax.bounds.tenant_lru import TenantLru, Usage
from kvflow_jax.cache.next_read import UNKNOWN, NextRead
from kvflow_jax.control.readers import HistoryReader, KeptReader, Reader, SessionReader
from kvflow_jax.control.run_tracker import Run, RunTracker
from kvflow_jax.workflow.hints import Hints

MAX_BYTES = 16 << 20  # of one tenant's histories
# Of a history beside its names and the hashes of its working set: its record, its expiry, its
# reader in the cache and that of its run.
_HISTORY_BYTES = 900
_BLOCK_BYTES = 8  # of a working set


@dataclass(slots=True)
class _History:
    """A conversation that will be continued, or a sequence that a caller asked to keep."""

    expires_s: float
    run: Run | None
    agent: str | None


class SessionStore:
    """Knows until when each history is kept, and which agent of which run continues it.

    A history is named by the reader of the prefix cache that will read it again.

    Args:
        run_tracker: knows when the agent that continues a history runs.
        release: called with each history that is no longer kept, and with its run.
        max_bytes: of one tenant's histories; the least recently kept are released first.
    """

    def __init__(
        self,
        run_tracker: RunTracker,
        release: Callable[[HistoryReader, Run | None], object],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._run_tracker, self._release = run_tracker, release
        self._histories: TenantLru[HistoryReader, _History] = TenantLru(max_bytes, self._drop)
        # A heap of (expiry time, tie-breaker, reader), some of them stale.
        self._expiries: list[tuple[float, int, HistoryReader]] = []
        self._numbers = count()

    def __len__(self) -> int:
        return len(self._histories)

    @property
    def usage(self) -> Usage:
        return self._histories.usage

    def keep(
        self,
        reader: HistoryReader,
        run: Run | None,
        agent: str | None,
        expires_s: float,
        num_blocks: int = 0,
    ) -> NextRead:
        """Keep a history until ``expires_s``, or extend it; return its next read.

        Args:
            num_blocks: of its working set.
        """
        self._pop(reader)
        names = sum(sys.getsizeof(name) for name in (*reader, agent) if isinstance(name, str))
        num_bytes = _HISTORY_BYTES + names + _BLOCK_BYTES * num_blocks
        self._histories.put(reader.tenant, reader, _History(expires_s, run, agent), num_bytes)
        heapq.heappush(self._expiries, (expires_s, next(self._numbers), reader))
        if len(self._expiries) > 2 * len(self._histories) + 64:
            self._expiries = [
                (history.expires_s, next(self._numbers), reader)
                for reader in self._histories
                if (history := self._find(reader)) is not None
            ]
            heapq.heapify(self._expiries)
        if run is None or agent is None:
            return UNKNOWN
        return self._run_tracker.attach_reader(run, agent, reader)

    def pin(self, reader: HistoryReader) -> None:
        """Suspend the expiry of a history that a call continues; ``keep`` at its end resumes it.

        The call may wait in the queue for longer than the time to live.
        """
        history = self._find(reader)
        if history is not None:
            history.expires_s = math.inf

    def forget(self, reader: HistoryReader) -> bool:
        """Release a history; return False for an unknown one."""
        history = self._pop(reader)
        if history is not None:
            self._release(reader, history.run)
        return history is not None

    def end_run(self, run: Run, *, keeps_sessions: bool = False) -> None:
        """Release the histories of all agents of a run.

        Args:
            keeps_sessions: whether those of sessions, which later runs continue, are left to their
                times to live.
        """
        for readers in list(run.readers.values()):
            for reader in list(readers):
                if not (keeps_sessions and isinstance(reader, SessionReader)):
                    self.forget(reader)

    def expire(self, now: float) -> None:
        """Release the histories whose time to live has passed."""
        while self._expiries and self._expiries[0][0] <= now:
            expires_s, _, reader = heapq.heappop(self._expiries)
            history = self._find(reader)
            if history is not None and history.expires_s == expires_s:
                self.forget(reader)

    def next_reads(self) -> dict[Reader, NextRead]:
        """Return the next read of each history that an agent of a run continues."""
        found = ((reader, self._find(reader)) for reader in self._histories)
        return {
            reader: self._run_tracker.history_read(history.run, history.agent)
            for reader, history in found
            if history is not None and history.run is not None and history.agent is not None
        }

    def _find(self, reader: HistoryReader) -> _History | None:
        return self._histories.get(reader.tenant, reader)

    def _pop(self, reader: HistoryReader) -> _History | None:
        history = self._histories.pop(reader.tenant, reader)
        if history is not None:
            self._detach(reader, history)
        return history

    def _drop(self, reader: HistoryReader, history: _History) -> None:
        """Release a history that was evicted."""
        self._detach(reader, history)
        self._release(reader, history.run)

    def _detach(self, reader: HistoryReader, history: _History) -> None:
        if history.run is not None and history.agent is not None:
            self._run_tracker.detach_reader(history.run, history.agent, reader)


def history_reader(tenant: str, hints: Hints) -> HistoryReader:
    """Return the reader of a call's history: its session, else its agent in this run."""
    if hints.session_id is not None:
        return SessionReader(tenant, hints.session_id)
    return KeptReader(tenant, hints.workflow_id, hints.agent_id)
