"""What a user says of a workflow: which agents there are, and which waits for which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Literal

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.workflow.joins import exclusive_joins
from kvflow_jax.workflow.step_graph import Edge, Graph

MAX_NODES = 4096
MAX_EDGES = 65_536
MAX_ID_LEN = 256  # characters

JoinMode = Literal["all", "any"]


class Workflow:
    """A graph of agent calls, built up by name and frozen to be run.

        Workflow("review").edge("planner", "coder").edge("coder", "reviewer")

    A node is one call of an agent in the graph; an agent that is called at several places has a
    node for each. A node with several inputs waits for all of them, or for any one where they
    cannot all arrive: where branches of a choice meet again, and where a loop comes back. ``join``
    says otherwise.

    Every method raises InvalidRequestError, naming the field and its bound, for what cannot be.
    """

    def __init__(self, name: str = "") -> None:
        if not isinstance(name, str) or len(name) > MAX_ID_LEN:
            raise InvalidRequestError(
                f"name must be a string of at most {MAX_ID_LEN} characters", param="name"
            )
        self.name = name
        self._agent_of: dict[str, str] = {}
        self._edges: dict[tuple[str, str], Edge] = {}
        self._joins: dict[str, JoinMode] = {}
        self._entries: dict[str, None] = {}  # an ordered set
        self._graph: Graph | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Workflow:
        """Read the JSON form of a step graph. Unknown keys are ignored, null is absent.

            {"name": str, "nodes": [str | {"id", "agent"}], "entries": [str],
             "edges": [{"source", "target", "conditional", "probability"}],
             "joins": [{"target", "mode": "all" | "any", "sources": [str]}]}

        Every key is optional but ``id``, ``source`` and ``target``. Sources of a join are edges
        even where ``edges`` lacks them.
        """
        if not isinstance(data, Mapping):
            raise InvalidRequestError("a step graph must be an object")
        workflow = cls(_value(data, "name", ""))
        for at, item in _items(data, "nodes"):
            node = {"id": item} if isinstance(item, str) else _record(item, at)
            workflow._add_node(node.get("id"), node.get("agent"), f"{at}.")
        for at, item in _items(data, "edges"):
            edge = _record(item, at)
            workflow._add_edge(
                edge.get("source"),
                edge.get("target"),
                _value(edge, "conditional", False),
                edge.get("probability"),
                f"{at}.",
            )
        for at, item in _items(data, "joins"):
            join = _record(item, at)
            target = join.get("target")
            workflow._add_join(target, _value(join, "mode", "all"), f"{at}.")
            for place, source in _items(join, "sources", f"{at}."):
                if (_check_id(source, place), target) not in workflow._edges:
                    workflow._add_edge(source, target, False, None, f"{at}.")
        for at, item in _items(data, "entries"):
            workflow._add_entry(item, at)
        return workflow

    def to_dict(self) -> dict[str, Any]:
        """The JSON form that ``from_dict`` reads, with what was said and no defaults."""
        sources: dict[str, list[str]] = {}
        for source, target in self._edges:
            sources.setdefault(target, []).append(source)
        data: dict[str, Any] = {"name": self.name} if self.name else {}
        data["nodes"] = [{"id": node, "agent": agent} for node, agent in self._agent_of.items()]
        data["edges"] = [_edge_dict(edge) for edge in self._edges.values()]
        if self._joins:
            data["joins"] = [
                {"target": node, "mode": mode, "sources": sources.get(node, [])}
                for node, mode in self._joins.items()
            ]
        if self._entries:
            data["entries"] = list(self._entries)
        return data

    @property
    def nodes(self) -> Mapping[str, str]:
        """Node -> agent, in the order they were declared."""
        return MappingProxyType(self._agent_of)

    @property
    def edges(self) -> tuple[Edge, ...]:
        """Edges in the order they were declared."""
        return tuple(self._edges.values())

    @property
    def joins(self) -> Mapping[str, JoinMode]:
        """Node -> mode, where one was declared."""
        return MappingProxyType(self._joins)

    @property
    def entries(self) -> tuple[str, ...]:
        """Nodes where a run begins: those declared, else those without inputs.

        If all have inputs, the graph is made of cycles, and the first edge says where it begins.
        """
        if self._entries:
            return tuple(self._entries)
        targets = {target for _, target in self._edges}
        roots = tuple(node for node in self._agent_of if node not in targets)
        return roots or tuple(source for source, _ in list(self._edges)[:1])

    @property
    def has_entry(self) -> bool:
        """Whether it is said, or follows from the edges, where a run begins."""
        targets = {target for _, target in self._edges}
        return bool(self._entries) or not self._agent_of.keys() <= targets

    def __repr__(self) -> str:
        edges = ", ".join(f"{source} -> {target}" for source, target in self._edges)
        return f"Workflow({self.name!r}, {len(self._agent_of)} nodes: {edges or 'no edges'})"

    def agent(self, name: str) -> Workflow:
        """Declare an agent that is called at one place, the node of its name."""
        self._add_node(name, None, "")
        return self

    def node(self, name: str, agent: str | None = None) -> Workflow:
        """Declare a call of ``agent``; by default, of the agent named like the node.

        A node that exists already changes its agent if one is given.
        """
        self._add_node(name, agent, "")
        return self

    def edge(
        self,
        source: str,
        target: str,
        conditional: bool = False,
        probability: float | None = None,
    ) -> Workflow:
        """Let ``target`` wait for ``source``. Nodes that are new are declared.

        Args:
            conditional: whether it is a choice of the source: one of its conditional targets
                runs, the others do not.
            probability: in [0, 1], that it is taken once the source is done; less than 1 makes
                it conditional. None: an equal share of what is left to the source's unlabelled
                choices.

        An edge that exists already is replaced.
        """
        self._add_edge(source, target, conditional, probability, "")
        return self

    def join(self, target: str, mode: JoinMode = "all") -> Workflow:
        """Let ``target`` wait for all of its inputs, or for any one."""
        self._add_join(target, mode, "")
        return self

    def entry(self, name: str) -> Workflow:
        """Let runs begin at a node, beside others that are declared so."""
        self._add_entry(name, "name")
        return self

    def freeze(self) -> Graph:
        """The graph as it stands; the same object until something changes."""
        if self._graph is None:
            any_joins = {node for node, mode in self._joins.items() if mode == "any"}
            any_joins |= exclusive_joins(self.edges, self.entries) - self._joins.keys()
            self._graph = Graph.build(self._agent_of, self.edges, any_joins, self.entries)
        return self._graph

    # The fields that errors name begin with ``at``: where in the JSON form the value stands.

    def _add_node(self, name: Any, agent: Any, at: str) -> None:
        name = _check_id(name, f"{at}id" if at else "name")
        if agent is not None:
            _check_id(agent, f"{at}agent")
        if name not in self._agent_of:
            if len(self._agent_of) == MAX_NODES:
                raise InvalidRequestError(
                    f"a workflow has at most {MAX_NODES} nodes", param="nodes"
                )
            self._agent_of[name] = name
        if agent is not None:
            self._agent_of[name] = agent
        self._graph = None

    def _add_edge(
        self, source: Any, target: Any, conditional: Any, probability: Any, at: str
    ) -> None:
        _check_id(source, f"{at}source")
        _check_id(target, f"{at}target")
        if not isinstance(conditional, bool):
            raise InvalidRequestError(
                f"{at}conditional must be true or false", param=f"{at}conditional"
            )
        if probability is not None:
            probability = _check_probability(probability, f"{at}probability")
            conditional = conditional or probability < 1.0
        if (source, target) not in self._edges and len(self._edges) == MAX_EDGES:
            raise InvalidRequestError(f"a workflow has at most {MAX_EDGES} edges", param="edges")
        self._add_node(source, None, at)
        self._add_node(target, None, at)
        self._edges[source, target] = Edge(source, target, conditional, probability)

    def _add_join(self, target: Any, mode: Any, at: str) -> None:
        _check_id(target, f"{at}target")
        if mode not in ("all", "any"):
            raise InvalidRequestError(f"{at}mode must be 'all' or 'any'", param=f"{at}mode")
        self._add_node(target, None, at)
        self._joins[target] = mode

    def _add_entry(self, name: Any, param: str) -> None:
        self._add_node(_check_id(name, param), None, "")
        self._entries[name] = None


def _check_id(value: Any, param: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID_LEN:
        raise InvalidRequestError(
            f"{param} must be a string of 1 to {MAX_ID_LEN} characters", param=param
        )
    return value


def _check_probability(value: Any, param: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= 1:
        raise InvalidRequestError(f"{param} must be a number in [0, 1]", param=param)
    return float(value)


def _value(data: Mapping[str, Any], key: str, default: Any) -> Any:
    value = data.get(key)
    return default if value is None else value


def _record(item: Any, param: str) -> Mapping[str, Any]:
    if not isinstance(item, Mapping):
        raise InvalidRequestError(f"{param} must be an object", param=param)
    return item


def _items(data: Mapping[str, Any], key: str, at: str = "") -> Iterator[tuple[str, Any]]:
    """The items of a list, each with its place."""
    items = _value(data, key, ())
    if not isinstance(items, list | tuple):
        raise InvalidRequestError(f"{at}{key} must be a list", param=f"{at}{key}")
    for i, item in enumerate(items):
        yield f"{at}{key}[{i}]", item


def _edge_dict(edge: Edge) -> dict[str, Any]:
    data: dict[str, Any] = {
        "source": edge.source,
        "target": edge.target,
        "conditional": edge.conditional,
    }
    if edge.probability is not None:
        data["probability"] = edge.probability
    return data
