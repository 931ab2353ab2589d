"""Names of workflow runs, and of the readers that the controller attaches to cached prefixes.

Each reader has its kind as last field, as named tuples of different classes may else be equal.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

RECOGNISED = "recognised:"  # begins the names of runs and conversations that no client has named


class RunKey(NamedTuple):
    """A workflow run of a tenant."""

    tenant: str
    workflow_id: str

    @property
    def is_recognised(self) -> bool:
        """Whether no client has named it."""
        return self.workflow_id.startswith(RECOGNISED)


class AgentReader(NamedTuple):
    """An agent, which will read one of its fixed prefixes again in any run."""

    tenant: str
    agent: str
    kind: Literal["agent"] = "agent"


class PrefixReader(NamedTuple):
    """An agent that will read a fixed prefix again, named by the hash of its last block."""

    tenant: str
    agent: str
    block_hash: int
    kind: Literal["prefix"] = "prefix"

    @property
    def of_agent(self) -> AgentReader:
        return AgentReader(self.tenant, self.agent)


class SessionReader(NamedTuple):
    """A conversation, which will read its history again."""

    tenant: str
    session_id: str
    kind: Literal["session"] = "session"


class KeptReader(NamedTuple):
    """The sequence of an agent's last call in a run, kept because its caller asked for it."""

    tenant: str
    workflow_id: str | None
    agent: str | None
    kind: Literal["kept"] = "kept"


class UnhintedReader(NamedTuple):
    """The unknown next turn of a request without hints."""

    tenant: str
    request_id: int
    kind: Literal["unhinted"] = "unhinted"


class PreemptedReader(NamedTuple):
    """A preempted request, which will read its computed tokens again."""

    request_id: int
    kind: Literal["preempted"] = "preempted"


HistoryReader = SessionReader | KeptReader | UnhintedReader
Reader = AgentReader | PrefixReader | HistoryReader | PreemptedReader
