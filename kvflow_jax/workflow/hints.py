"""What a caller may say of a request: who calls, in which run of which workflow, what comes next.

Hints are advice. A field that makes no sense is passed over, never an error; the answer says what
became of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, TypeGuard

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.workflow.graph_store import GraphStore
from kvflow_jax.workflow.step_graph import Graph

MAX_ID_LEN = 256  # characters
MAX_NAMED = 4096  # agents in one request's hints
MAX_STEPS = 1 << 16
MAX_TTL_S = 24 * 3600.0


class HintStatus(StrEnum):
    """What became of a request's hints."""

    APPLIED = "applied"
    CLIPPED = "clipped"  # a field made no sense, was cut, or names an agent its graph lacks
    IGNORED = "ignored"  # none could be used
    UNKNOWN_GRAPH = "unknown_graph"  # applied, but the graph they name is not registered


class Reuse(StrEnum):
    KEEP = "keep"
    NEUTRAL = "neutral"
    DISCARD = "discard"


_REUSE = {reuse.value: reuse for reuse in Reuse}  # Python 3.11 asks enums for members only


@dataclass(frozen=True, slots=True)
class Hints:
    """One request's hints.

    Attributes:
        workflow_id: one run of a workflow.
        agent_id: the stable role that calls.
        session_id: a conversation, whose history will be continued; until ``session_final``.
        graph_id: a registered workflow that the run follows; or
        graph: the workflow itself.
        steps_to_execution: agent -> steps, said by a caller that keeps its own graph.
        next_agents: agent -> probability, said by a caller that knows only what comes next.
        num_fixed: leading tokens of the prompt in which the agent's calls agree.
        reuse: of the whole sequence.
        ttl_s: how long history and ``keep`` count; None: the engine's default.
        is_clipped: whether something was passed over.
        owner: whose agents, runs and sessions they are; None: the request's client's.
    """

    workflow_id: str | None = None
    agent_id: str | None = None
    session_id: str | None = None
    session_final: bool = False
    graph_id: str | None = None
    graph: Graph | None = None
    steps_to_execution: Mapping[str, float] = field(default_factory=dict)
    next_agents: Mapping[str, float] = field(default_factory=dict)
    num_fixed: int | None = None
    reuse: Reuse = Reuse.NEUTRAL
    ttl_s: float | None = None
    is_clipped: bool = False
    tenant: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether they name nobody and nothing."""
        return (
            self.agent_id is None
            and self.workflow_id is None
            and self.session_id is None
            and self.reuse is Reuse.NEUTRAL
        )

    def with_fixed(self, num_fixed: int | None, num_prompt: int) -> Hints:
        """The same with a fixed prefix, tokens; cut to the prompt's."""
        if num_fixed is None or num_fixed <= num_prompt:
            return replace(self, num_fixed=num_fixed)
        return replace(self, num_fixed=num_prompt, is_clipped=True)


@dataclass(frozen=True, slots=True)
class FixedPrefix:
    """What a caller calls its fixed prefix: so many tokens, or so many messages."""

    unit: Literal["token", "message"]
    end: int


class HintReader:
    """Reads the JSON form of hints, field by field; what it cannot use it notes.

    Args:
        data: what was sent, of any type.
        graphs: where step graphs are frozen; a caller with many requests keeps one.

    Attributes:
        priority: higher runs sooner; None: not said.
        fixed_prefix: None: not said. ``read`` leaves ``num_fixed`` open, for which the prompt's
            tokens are needed.
    """

    def __init__(self, data: Any, graphs: GraphStore | None = None) -> None:
        self._data = data if isinstance(data, Mapping) else {}
        self._graphs = GraphStore() if graphs is None else graphs
        self._is_clipped = data is not None and not isinstance(data, Mapping)
        self.priority = self._priority()
        self.fixed_prefix = self._fixed_prefix()

    def read(self) -> Hints:
        """The hints. Milliseconds for a large step graph that is new."""
        agent_id = self._id("agent_id")
        steps = self._steps(agent_id)
        return Hints(
            workflow_id=self._id("workflow_id"),
            agent_id=agent_id,
            session_id=self._id("session_id"),
            session_final=self._flag("session_final"),
            graph_id=self._id("graph_id"),
            graph=self._graph(),
            steps_to_execution=steps,
            next_agents=self._next_agents(),
            reuse=self._reuse(),
            ttl_s=self._ttl_s(),
            is_clipped=self._is_clipped,
        )

    def _fixed_prefix(self) -> FixedPrefix | None:
        prefix = self._data.get("fixed_prefix")
        if prefix is None:
            return None
        if isinstance(prefix, Mapping):
            unit, end = prefix.get("unit"), prefix.get("end")
            if unit in (None, "token", "message") and _is_int(end) and end >= 0:
                return FixedPrefix("message" if unit == "message" else "token", end)
        self._is_clipped = True
        return None

    def _priority(self) -> int | None:
        value = self._data.get("priority")
        if value is None or (_is_int(value) and abs(value) < 1 << 31):
            return value
        self._is_clipped = True
        return None

    def _id(self, name: str) -> str | None:
        value = self._data.get(name)
        if value is None or (isinstance(value, str) and 0 < len(value) <= MAX_ID_LEN):
            return value
        self._is_clipped = True
        return None

    def _flag(self, name: str) -> bool:
        value = self._data.get(name)
        self._is_clipped |= value is not None and not isinstance(value, bool)
        return value is True

    def _graph(self) -> Graph | None:
        given = self._data.get("step_graph")
        if given is None:
            return None
        try:
            graph = self._graphs.graph(given)
        except InvalidRequestError:
            self._is_clipped = True
            return None
        self._is_clipped |= not graph.names
        return graph if graph.names else None

    def _steps(self, agent_id: str | None) -> dict[str, float]:
        given = self._data.get("steps_to_execution")
        if given is None:
            return {}
        if _is_number(given) and agent_id is not None:
            given = {agent_id: given}
        if not isinstance(given, Mapping):
            self._is_clipped = True
            return {}
        read = {
            agent: float(math.floor(min(max(steps, 0), MAX_STEPS)))
            for agent, steps in list(given.items())[:MAX_NAMED]
            if _is_id(agent) and _is_number(steps)
        }
        self._is_clipped |= read != dict(given)
        return read

    def _next_agents(self) -> dict[str, float]:
        given = self._data.get("next_agents")
        if given is None:
            return {}
        if not isinstance(given, list):
            self._is_clipped = True
            return {}
        read: dict[str, float] = {}
        for item in given[:MAX_NAMED]:
            one = {"agent_id": item} if isinstance(item, str) else item
            agent = one.get("agent_id") if isinstance(one, Mapping) else None
            chance = one.get("probability") if isinstance(one, Mapping) else None
            if _is_id(agent) and (chance is None or (_is_number(chance) and 0 <= chance <= 1)):
                read[agent] = 1.0 if chance is None else float(chance)
        self._is_clipped |= len(read) != len(given)
        return read

    def _reuse(self) -> Reuse:
        given = self._data.get("reuse_hint")
        if isinstance(given, str) and given in _REUSE:
            return _REUSE[given]
        self._is_clipped |= given is not None
        return Reuse.NEUTRAL

    def _ttl_s(self) -> float | None:
        given = self._data.get("cache_ttl_ms")
        if given is None:
            return None
        if _is_number(given) and given >= 0:
            self._is_clipped |= given > 1e3 * MAX_TTL_S
            return min(given, 1e3 * MAX_TTL_S) / 1e3  # in this order: an int may be of any size
        self._is_clipped = True
        return None


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _is_id(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_ID_LEN
