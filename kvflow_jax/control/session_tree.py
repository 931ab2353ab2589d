"""Tracks which sessions wait for subagents, and finds histories that nothing will read again.

parent ── calls tools ──▶ subagents call ──▶ parent goes on: their histories have ended
session, generation 0 ── is compacted ──▶ generation 1: the history of 0 has ended
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from kvflow_jax.bounds.tenant_lru import TenantLru, Usage
from kvflow_jax.control.readers import SessionReader
from kvflow_jax.workflow.hints import Hints

MAX_BYTES = 8 << 20  # of one tenant's sessions
MAX_CHILDREN = 256  # of one session; beyond them the first end by their time to live only
_SESSION_BYTES, _CHILD_BYTES = 500, 150  # beside their names


class EndedBy(StrEnum):
    """Why a history has ended before its time to live."""

    PARENT = "parent"  # the session that waited for a subagent has gone on
    COMPACTION = "compaction"
    USE = "use"  # another conversation has its answer, and its agent's are not continued then
    # A call of an earlier generation than its session has: what it computed is not kept.
    LATE_CALL = "late_call"


class Ended(NamedTuple):
    """A history that has ended."""

    reader: SessionReader
    reason: EndedBy


@dataclass(slots=True)
class _Session:
    """State of a session.

    Attributes:
        num_calls: calls in progress.
        agent: agent of its last call.
        generation: generation of its current history; None: its client sends none.
        num_late: calls of an earlier generation since the last one of the current.
        parent_id: the session that waits for this one; None: no session does.
        caller: agent of the parent that began it. Other agents of the parent, such as one that
            writes a title, do not wait for it.
        children: sessions that may end when this one goes on, the first begun first.
        is_released: whether its history was released.
        runs_beside: whether it went on after its release: its parent does not wait for it.
    """

    num_calls: int = 0
    agent: str | None = None
    generation: int | None = None
    num_late: int = 0
    parent_id: str | None = None
    caller: str | None = None
    children: dict[str, None] = field(default_factory=dict)
    is_released: bool = False
    runs_beside: bool = False


class SessionTree:
    """The sessions of all tenants, within a budget of bytes for each tenant.

    What it returns is advice: blocks without a reader can still be hit until they are evicted.

    Args:
        max_bytes: of one tenant's sessions; the least recently used are forgotten first.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._sessions: TenantLru[SessionReader, _Session] = TenantLru(max_bytes)

    @property
    def usage(self) -> Usage:
        return self._sessions.usage

    def begin_call(self, tenant: str, hints: Hints) -> list[Ended]:
        """Record a call, and return the histories that it ends."""
        if hints.session_id is None:
            return []
        reader = SessionReader(tenant, hints.session_id)
        session = self._sessions.use(tenant, reader) or _Session()
        ended = []
        if self._begin_generation(session, hints.session_generation):
            ended.append(Ended(reader, EndedBy.COMPACTION))
        if session.parent_id is None and hints.parent_session_id not in (None, hints.session_id):
            session.parent_id = hints.parent_session_id
        session.runs_beside |= session.is_released
        session.num_calls += 1
        session.agent = hints.agent_id
        ended += self._end_children(tenant, session, hints)
        self._put(reader, session)
        self._add_to_parent(reader, session)
        return ended

    def end_call(self, tenant: str, hints: Hints) -> bool:
        """Record the end of a call; return True if the generation of its history has ended."""
        if hints.session_id is None:
            return False
        session = self._sessions.get(tenant, SessionReader(tenant, hints.session_id))
        if session is None:
            return False
        session.num_calls = max(0, session.num_calls - 1)
        return _is_earlier(hints.session_generation, session.generation)

    def _begin_generation(self, session: _Session, generation: int | None) -> bool:
        """Record the generation of a call; return whether an earlier one has ended."""
        if generation is None:
            return False
        if not _is_earlier(generation, session.generation):
            is_new = session.generation is not None and generation > session.generation
            session.generation, session.num_late = generation, 0
            return is_new
        # One call may have been overtaken. Two in a row: the client has gone back to a copy.
        session.num_late += 1
        if session.num_late == 1:
            return False
        session.generation, session.num_late = generation, 0
        return True

    def _end_children(self, tenant: str, session: _Session, hints: Hints) -> list[Ended]:
        """Return the histories of subagents, and of theirs, that a session no longer waits for."""
        ended = []
        left = [(session, name) for name in session.children]
        while left:
            parent, name = left.pop()
            reader = SessionReader(tenant, name)
            child = self._sessions.get(tenant, reader)
            if child is None or name == hints.session_id:
                parent.children.pop(name, None)
                continue
            is_direct = parent is session
            if not hints.session_final and (
                child.num_calls
                or child.runs_beside
                or (is_direct and child.caller not in (None, hints.agent_id))
            ):
                continue
            parent.children.pop(name, None)
            if not child.is_released:
                child.is_released = True
                ended.append(Ended(reader, EndedBy.PARENT))
            left += [(child, grandchild) for grandchild in child.children]
        return ended

    def _add_to_parent(self, reader: SessionReader, session: _Session) -> None:
        if session.parent_id is None:
            return
        key = SessionReader(reader.tenant, session.parent_id)
        parent = self._sessions.get(reader.tenant, key)
        if parent is None:
            parent = _Session()
        elif reader.session_id in parent.children:
            return
        session.caller = parent.agent
        session.is_released = False
        parent.children[reader.session_id] = None
        if len(parent.children) > MAX_CHILDREN:
            del parent.children[next(iter(parent.children))]
        self._put(key, parent)

    def _put(self, reader: SessionReader, session: _Session) -> None:
        names = (*reader, session.parent_id, session.agent, session.caller)
        num_bytes = _SESSION_BYTES + sum(sys.getsizeof(name) for name in names if name is not None)
        num_bytes += sum(_CHILD_BYTES + len(child) for child in session.children)
        self._sessions.put(reader.tenant, reader, session, num_bytes)


def _is_earlier(generation: int | None, current: int | None) -> bool:
    return generation is not None and current is not None and generation < current
