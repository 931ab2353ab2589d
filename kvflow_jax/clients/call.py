"""Whose call of a model is being made: its run, its agent, its conversation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from kvflow_jax.clients.runs import Run


@dataclass(frozen=True, slots=True)
class Call:
    """The call that the current thread or task is making.

    Attributes:
        agent: the role that calls.
        run: the run that it belongs to; None if that is unknown.
        session: name of its conversation as its caller gave it.
        conversation: name under which a later call may continue this one; whether one does, under
            this or another name, is seen in the prompts.
        outlives_run: whether later runs may continue the conversation.
        on_sent: called when its request is sent.
    """

    agent: str | None
    run: Run | None = None
    session: str | None = None
    conversation: str | None = None
    outlives_run: bool = False
    on_sent: Callable[[], None] | None = None


class Caller(Protocol):
    """A framework: the graphs of its applications, and whose call is being made."""

    @property
    def gaps(self) -> list[str]:
        """What the graphs do not say of themselves, one sentence each."""
        ...

    def bind(self, graph: object) -> bool:
        """Take the graph of an application; return False for what is none of this framework's."""
        ...

    def current(self) -> Call | None:
        """Return the call that is being made; None if it is none of this framework's."""
        ...
