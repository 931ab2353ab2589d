"""Hints of a request: its agent, its run of a workflow, its conversation, and what comes next.

Hints are advice. An invalid field is ignored, never an error; the answer reports a ``HintStatus``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import accumulate, islice
from typing import Literal, NoReturn, TypeGuard

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.workflow.graph_store import GraphStore
from kvflow_jax.workflow.step_graph import Graph

MAX_ID_LEN = 256  # characters
MAX_AGENTS = 1024  # in one field of one request's hints; the engine reads each in about 5 us
MAX_NAME_CHARS = 1 << 16  # of all agents in one field
MAX_STEPS = 1 << 16
MAX_TTL_S = 24 * 3600.0
MAX_GENERATION = 1 << 31


class HintStatus(StrEnum):
    """The outcome of a request's hints."""

    APPLIED = "applied"
    # Some could be used, and some not: a field was invalid, was cut, is not read, needs another
    # that is missing, contradicts another, or names an agent that the run's graph lacks.
    CLIPPED = "clipped"
    IGNORED = "ignored"  # none could be used, or nothing in the cache depends on hints
    UNKNOWN_GRAPH = "unknown_graph"  # applied, but the graph they name is not registered


class Reuse(StrEnum):
    """What to do with the KV of a whole sequence after its call."""

    KEEP = "keep"
    NEUTRAL = "neutral"
    DISCARD = "discard"


# In Python 3.11, ``in`` of an enum accepts its members only, not their values.
_REUSE = {reuse.value: reuse for reuse in Reuse}


_ID_FIELDS = ("workflow_id", "agent_id", "session_id", "parent_session_id", "graph_id", "tenant")

# Of the JSON form. Others are not read, such as ``step_id`` or ``deadline_ms``.
_READ = frozenset(
    (
        *("workflow_id", "agent_id", "session_id", "session_final", "parent_session_id"),
        *("session_generation", "graph_id", "step_graph", "steps_to_execution", "next_agents"),
        *("fixed_prefix", "reuse_hint", "cache_ttl_ms", "prefetch", "priority"),
    )
)


@dataclass(frozen=True, slots=True)
class Hints:
    """One request's hints.

    Attributes:
        workflow_id: the run, one execution of a workflow.
        agent_id: the agent that calls, a stable role.
        session_id: a conversation whose history will be continued.
        session_final: whether this call is the last of its session, or of its run.
        parent_session_id: the session that waits for this one, which is a subagent's.
        session_generation: how often the session has been compacted; what an earlier generation
            had is not read again.
        graph_id: name of the registered workflow that the run follows.
        graph: the workflow itself; precedes ``graph_id``.
        steps_to_execution: agent -> steps, from a caller that keeps its own graph.
        next_agents: agent -> probability, from a caller that knows only the next step.
        num_fixed: length of the fixed prefix in tokens; None: the engine learns it.
        reuse: what to do with the KV of the whole sequence.
        ttl_s: seconds to keep a history or a KEEP; None: the engine's default.
        prefetch: whether what the run reads next may be loaded ahead, until its next call; None:
            it may.
        is_clipped: whether a field was ignored or cut.
        priority: higher runs sooner, unless the request itself has one; None: not given.
        tenant: tenant that the agents, runs and sessions belong to; None: the request's.
    """

    workflow_id: str | None = None
    agent_id: str | None = None
    session_id: str | None = None
    session_final: bool = False
    parent_session_id: str | None = None
    session_generation: int | None = None
    graph_id: str | None = None
    graph: Graph | None = None
    steps_to_execution: Mapping[str, float] = field(default_factory=dict)
    next_agents: Mapping[str, float] = field(default_factory=dict)
    num_fixed: int | None = None
    reuse: Reuse = Reuse.NEUTRAL
    ttl_s: float | None = None
    prefetch: bool | None = None
    is_clipped: bool = False
    tenant: str | None = None
    priority: int | None = None

    @property
    def is_empty(self) -> bool:
        """Whether they name no agent, run or session, and ask for no reuse."""
        return (
            self.agent_id is None
            and self.workflow_id is None
            and self.session_id is None
            and self.reuse is Reuse.NEUTRAL
        )

    @property
    def has_unused(self) -> bool:
        """Whether a field says nothing: it needs another that is missing, or contradicts one."""
        in_run = self.workflow_id is not None
        moves_run = self.steps_to_execution or self.next_agents or self.prefetch is not None
        is_over = self.session_final or self.reuse is Reuse.DISCARD
        keeps = (self.session_id is not None or self.reuse is Reuse.KEEP) and not is_over
        names_graph = self.graph is not None or self.graph_id is not None
        return bool(
            (moves_run and not (in_run and self.agent_id is not None))
            or (names_graph and not in_run)
            or (self.session_final and self.session_id is None and not in_run)
            or (self.num_fixed is not None and self.agent_id is None)
            or (self.reuse is Reuse.KEEP and is_over)
            or (self.ttl_s is not None and not keeps)
            or (self.parent_session_id is not None and self.session_id is None)
            or (self.parent_session_id is not None and self.parent_session_id == self.session_id)
            or (self.session_generation is not None and self.session_id is None)
        )

    def check_types(self) -> None:
        """Raise InvalidRequestError if a field has the wrong type; the error names the field."""
        for name in _ID_FIELDS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                self._reject(name, "a string")
        for name in ("num_fixed", "session_generation"):
            value = getattr(self, name)
            if value is not None and not (_is_int(value) and value >= 0):
                self._reject(name, "an integer of at least 0")
        if not isinstance(self.reuse, Reuse):
            self._reject("reuse", "a Reuse")
        if self.ttl_s is not None and not _is_number(self.ttl_s):
            self._reject("ttl_s", "a number")
        if self.prefetch is not None and not isinstance(self.prefetch, bool):
            self._reject("prefetch", "a bool")
        if self.graph is not None and not isinstance(self.graph, Graph):
            self._reject("graph", "a frozen Graph")
        for name in ("steps_to_execution", "next_agents"):
            numbers = getattr(self, name)
            if not isinstance(numbers, Mapping) or not all(
                isinstance(agent, str) and _is_number(number) for agent, number in numbers.items()
            ):
                self._reject(name, "a mapping from agents to numbers")

    def _reject(self, name: str, expected: str) -> NoReturn:
        raise InvalidRequestError(
            f"hints.{name} must be {expected}, got {getattr(self, name)!r:.80}", f"hints.{name}"
        )

    def with_fixed(self, num_fixed: int | None, num_prompt: int) -> Hints:
        """Return the same hints with a fixed prefix in tokens, cut to the length of the prompt."""
        if num_fixed is None or num_fixed <= num_prompt:
            return replace(self, num_fixed=num_fixed)
        return replace(self, num_fixed=num_prompt, is_clipped=True)


@dataclass(frozen=True, slots=True)
class FixedPrefix:
    """A declared fixed prefix: the first ``end`` tokens or messages of a prompt."""

    unit: Literal["token", "message"]
    end: int


class HintParser:
    """Parses the JSON form of hints, field by field, and notes whether a field was unusable.

    Args:
        data: the JSON value that was sent, of any type.
        graphs: the store that freezes step graphs; share one between requests.
        session_id: of hints that name no session.
        tenant: whose graphs of the store are used.
        identity: whose call it is, if the data name neither run nor agent nor session.
        root_session: the run, if the data name none.
        is_clipped: whether other hints of the request could not be used.

    Attributes:
        priority: higher runs sooner; None if absent.
        fixed_prefix: None if absent. ``parse`` leaves ``num_fixed`` None, as the length in tokens
            depends on the prompt; see ``Hints.with_fixed``.
    """

    def __init__(
        self,
        data: object,
        graphs: GraphStore | None = None,
        session_id: str | None = None,
        tenant: str = "",
        identity: Hints | None = None,
        root_session: str | None = None,
        is_clipped: bool = False,
    ) -> None:
        self._tenant, self._identity = tenant, identity
        self._session_id = session_id if _is_id(session_id) else None
        self._root_session = root_session if _is_id(root_session) else None
        self._data: Mapping[str, object] = data if isinstance(data, Mapping) else {}
        self._graphs = GraphStore() if graphs is None else graphs
        self._is_clipped = is_clipped or (data is not None and not isinstance(data, Mapping))
        self._is_clipped |= any(
            value is not None and name not in _READ for name, value in self._data.items()
        )
        self.priority = self._priority()
        self.fixed_prefix = self._fixed_prefix()

    def parse(self) -> Hints:
        """Return the hints. Takes milliseconds for a large step graph that is not in the store."""
        caller, reuse = self._caller(), self._reuse()
        # Only agents have fixed prefixes, and none of a sequence that is discarded is kept.
        has_prefix = caller.agent_id is not None and reuse is not Reuse.DISCARD
        self._is_clipped |= self.fixed_prefix is not None and not has_prefix
        return replace(
            caller,
            graph_id=self._id("graph_id"),
            graph=self._graph(),
            steps_to_execution=self._steps(caller.agent_id),
            next_agents=self._next_agents(),
            reuse=reuse,
            ttl_s=self._ttl_s(),
            prefetch=self._flag("prefetch"),
            priority=self.priority,
            is_clipped=self._is_clipped,
        )

    def _caller(self) -> Hints:
        """Return the run, the agent and the session of the data, else of the identity."""
        own = Hints(
            workflow_id=self._id("workflow_id"),
            agent_id=self._id("agent_id"),
            session_id=self._id("session_id"),
            session_final=self._flag("session_final") is True,
            parent_session_id=self._id("parent_session_id"),
            session_generation=self._generation(),
        )
        identity = self._identity
        if identity is None or not own.is_empty:
            return replace(
                own,
                workflow_id=own.workflow_id or self._root_session,
                session_id=own.session_id or self._session_id,
            )
        generation = own.session_generation
        return replace(
            identity,
            session_final=own.session_final or identity.session_final,
            parent_session_id=own.parent_session_id or identity.parent_session_id,
            session_generation=identity.session_generation if generation is None else generation,
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

    def _generation(self) -> int | None:
        value = self._data.get("session_generation")
        if value is None or (_is_int(value) and 0 <= value < MAX_GENERATION):
            return value
        self._is_clipped = True
        return None

    def _flag(self, name: str) -> bool | None:
        value = self._data.get(name)
        if value is None or isinstance(value, bool):
            return value
        self._is_clipped = True
        return None

    def _graph(self) -> Graph | None:
        value = self._data.get("step_graph")
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self._is_clipped = True
            return None
        try:
            graph = self._graphs.graph(value, self._tenant)
        except InvalidRequestError:
            self._is_clipped = True
            return None
        self._is_clipped |= not graph.names
        return graph if graph.names else None

    def _steps(self, agent_id: str | None) -> dict[str, float]:
        value = self._data.get("steps_to_execution")
        if value is None:
            return {}
        if _is_number(value) and agent_id is not None:
            value = {agent_id: value}
        if not isinstance(value, Mapping):
            self._is_clipped = True
            return {}
        parsed = {
            agent: float(math.floor(min(max(steps, 0), MAX_STEPS)))
            for agent, steps in islice(value.items(), MAX_AGENTS)
            if _is_id(agent) and _is_number(steps)
        }
        parsed = _first_names(parsed)
        self._is_clipped |= len(parsed) != len(value) or parsed != dict(value)
        return parsed

    def _next_agents(self) -> dict[str, float]:
        value = self._data.get("next_agents")
        if value is None:
            return {}
        if not isinstance(value, list):
            self._is_clipped = True
            return {}
        parsed: dict[str, float] = {}
        for item in value[:MAX_AGENTS]:
            record = {"agent_id": item} if isinstance(item, str) else item
            if not isinstance(record, Mapping):
                continue
            agent, probability = record.get("agent_id"), record.get("probability")
            if not _is_id(agent):
                continue
            if probability is None:
                parsed[agent] = 1.0
            elif _is_number(probability) and 0 <= probability <= 1:
                parsed[agent] = float(probability)
        parsed = _first_names(parsed)
        self._is_clipped |= len(parsed) != len(value)
        return parsed

    def _reuse(self) -> Reuse:
        value = self._data.get("reuse_hint")
        if isinstance(value, str) and value in _REUSE:
            return _REUSE[value]
        self._is_clipped |= value is not None
        return Reuse.NEUTRAL

    def _ttl_s(self) -> float | None:
        value = self._data.get("cache_ttl_ms")
        if value is None:
            return None
        if _is_number(value) and value >= 0:
            self._is_clipped |= value > 1e3 * MAX_TTL_S
            # In this order, as an int may be too large for a float.
            return min(value, 1e3 * MAX_TTL_S) / 1e3
        self._is_clipped = True
        return None


def _first_names(numbers: dict[str, float]) -> dict[str, float]:
    """Return the first entries, whose names have at most ``MAX_NAME_CHARS`` together."""
    if sum(map(len, numbers)) <= MAX_NAME_CHARS:
        return numbers
    num_fitting = sum(end <= MAX_NAME_CHARS for end in accumulate(map(len, numbers)))
    return dict(islice(numbers.items(), num_fitting))


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _is_id(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and 0 < len(value) <= MAX_ID_LEN
