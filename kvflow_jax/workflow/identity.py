"""Whose call a request is, as far as its client tells without hints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """The hints that follow from what a client sends anyway, such as ids of its sessions.

    Attributes:
        workflow_id: the root session, with all subagents one run.
        agent_id: the role that calls: calls with the same tools and instructions.
        session_id: the conversation; None for a call that nothing will continue.
        session_final: whether the session ends with this call.
        parent_session_id: the conversation that waits for this one, which is a subagent's.
        session_generation: how often the conversation has been compacted.
    """

    workflow_id: str | None = None
    agent_id: str | None = None
    session_id: str | None = None
    session_final: bool = False
    parent_session_id: str | None = None
    session_generation: int | None = None
