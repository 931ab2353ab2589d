"""The builder of workflows: agents, their dependencies, and the JSON form of both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Literal

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.workflow.joins import exclusive_joins
from kvflow_jax.workflow.step_graph import Edge, Graph

MAX_NODES = 4096
MAX_EDGES = 16_384  # each event of a run follows all of them: about 2 ms
MAX_ID_LEN = 256  # characters

JoinMode = Literal["all", "any"]
_JOIN_MODES: dict[str, JoinMode] = {"all": "all", "any": "any"}


class Workflow:
    """A graph of agent calls, built by name and frozen to be run.

        Workflow("review").edge("planner", "coder").edge("coder", "reviewer")

    A node is one call of an agent in the graph; an agent that is called several times has a node
    for each call. A node with several inputs waits for all of them, or for any of them if not all
    can be satisfied: where branches of a choice meet again, and where a loop comes back. ``join``
    overrides this.

    Every method raises InvalidRequestError for an invalid argument, with the field and its bound.
    """

    def __init__(self, name: str = "") -> None:
        self.name = _check_name(name)
        self._agent_of: dict[str, str] = {}
        self._edges: dict[tuple[str, str], Edge] = {}
        self._joins: dict[str, JoinMode] = {}
        self._entries: dict[str, None] = {}  # an ordered set
        self._graph: Graph | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Workflow:
        """Parse the JSON form of a step graph. Unknown keys are ignored, null counts as absent.

            {"name": str, "nodes": [str | {"id", "agent"}], "entries": [str],
             "edges": [{"source", "target", "conditional", "probability"}],
             "joins": [{"target", "mode": "all" | "any", "sources": [str]}]}

        Only ``id``, ``source`` and ``target`` are required. Each source of a join is an edge, even
        if ``edges`` lacks it. No list may be longer than the workflow that it declares can be, even
        if it repeats itself.
        """
        if not isinstance(data, Mapping):
            raise InvalidRequestError("a step graph must be an object")
        workflow = cls(_check_name(_value(data, "name", "")))
        for path, item in _items(data, "nodes", MAX_NODES):
            node = {"id": item} if isinstance(item, str) else _record(item, path)
            workflow._add_node(node.get("id"), node.get("agent"), f"{path}.")
        for path, item in _items(data, "edges", MAX_EDGES):
            edge = _record(item, path)
            workflow._add_edge(
                edge.get("source"),
                edge.get("target"),
                _value(edge, "conditional", False),
                edge.get("probability"),
                f"{path}.",
            )
        num_sources_left = MAX_EDGES  # of all joins together
        for path, item in _items(data, "joins", MAX_NODES):
            join = _record(item, path)
            target = _check_id(join.get("target"), f"{path}.target")
            workflow._add_join(target, _value(join, "mode", "all"), f"{path}.")
            sources = list(_items(join, "sources", num_sources_left, f"{path}."))
            num_sources_left -= len(sources)
            for source_path, source in sources:
                if (_check_id(source, source_path), target) not in workflow._edges:
                    workflow._add_edge(source, target, False, None, f"{path}.")
        for path, item in _items(data, "entries", MAX_NODES):
            workflow._add_entry(item, path)
        return workflow

    def to_dict(self) -> dict[str, object]:
        """Return the JSON form that ``from_dict`` parses: all declarations, without defaults."""
        sources: dict[str, list[str]] = {}
        for source, target in self._edges:
            sources.setdefault(target, []).append(source)
        data: dict[str, object] = {"name": self.name} if self.name else {}
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
        """Node -> agent, in the order of declaration."""
        return MappingProxyType(self._agent_of)

    @property
    def edges(self) -> tuple[Edge, ...]:
        """The edges, in the order of declaration."""
        return tuple(self._edges.values())

    @property
    def joins(self) -> Mapping[str, JoinMode]:
        """Node -> mode, of the declared joins."""
        return MappingProxyType(self._joins)

    @property
    def entries(self) -> tuple[str, ...]:
        """The nodes where a run begins: the declared ones, else those without inputs.

        If all nodes have inputs, a run begins at the source of the first edge.
        """
        if self._entries:
            return tuple(self._entries)
        targets = {target for _, target in self._edges}
        roots = tuple(node for node in self._agent_of if node not in targets)
        return roots or tuple(source for source, _ in list(self._edges)[:1])

    @property
    def has_entry(self) -> bool:
        """Whether an entry is declared, or a node has no inputs."""
        targets = {target for _, target in self._edges}
        return bool(self._entries) or not self._agent_of.keys() <= targets

    def __repr__(self) -> str:
        edges = ", ".join(f"{source} -> {target}" for source, target in self._edges)
        return f"Workflow({self.name!r}, {len(self._agent_of)} nodes: {edges or 'no edges'})"

    def agent(self, name: str) -> Workflow:
        """Declare an agent with a single call, the node of its name."""
        self._add_node(name, None, "")
        return self

    def node(self, name: str, agent: str | None = None) -> Workflow:
        """Declare a call of ``agent``; by default, of the agent named like the node.

        If the node exists already, its agent is replaced if one is given.
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
        """Make ``target`` wait for ``source``. Declares new nodes; replaces an existing edge.

        Args:
            conditional: whether the edge is a choice of its source: one of the conditional targets
                runs, the others do not.
            probability: in [0, 1], that the edge is taken once its source is done; less than 1
                makes it conditional. None: an equal share of what the source's other choices leave.
        """
        self._add_edge(source, target, conditional, probability, "")
        return self

    def join(self, target: str, mode: JoinMode = "all") -> Workflow:
        """Make ``target`` wait for all of its inputs, or for any of them."""
        self._add_join(target, mode, "")
        return self

    def entry(self, name: str) -> Workflow:
        """Declare a node where runs begin, in addition to others declared so."""
        self._add_entry(name, "name")
        return self

    def freeze(self) -> Graph:
        """Return the graph; the same object until the workflow changes."""
        if self._graph is None:
            any_joins = {node for node, mode in self._joins.items() if mode == "any"}
            any_joins |= exclusive_joins(self.edges, self.entries) - self._joins.keys()
            self._graph = Graph.build(self._agent_of, self.edges, any_joins, self.entries)
        return self._graph

    # ``prefix`` is the path of a value in the JSON form. Field names in errors begin with it.

    def _add_node(self, name: object, agent: object, prefix: str) -> None:
        name = _check_id(name, f"{prefix}id" if prefix else "name")
        agent = None if agent is None else _check_id(agent, f"{prefix}agent")
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
        self,
        source: object,
        target: object,
        conditional: object,
        probability: object,
        prefix: str,
    ) -> None:
        source = _check_id(source, f"{prefix}source")
        target = _check_id(target, f"{prefix}target")
        if not isinstance(conditional, bool):
            raise InvalidRequestError(
                f"{prefix}conditional must be true or false", param=f"{prefix}conditional"
            )
        if probability is not None:
            probability = _check_probability(probability, f"{prefix}probability")
            conditional = conditional or probability < 1.0
        if (source, target) not in self._edges and len(self._edges) == MAX_EDGES:
            raise InvalidRequestError(f"a workflow has at most {MAX_EDGES} edges", param="edges")
        self._add_node(source, None, prefix)
        self._add_node(target, None, prefix)
        self._edges[source, target] = Edge(source, target, conditional, probability)

    def _add_join(self, target: object, mode: object, prefix: str) -> None:
        target = _check_id(target, f"{prefix}target")
        if not isinstance(mode, str) or mode not in _JOIN_MODES:
            raise InvalidRequestError(f"{prefix}mode must be 'all' or 'any'", param=f"{prefix}mode")
        self._add_node(target, None, prefix)
        self._joins[target] = _JOIN_MODES[mode]

    def _add_entry(self, name: object, param: str) -> None:
        name = _check_id(name, param)
        self._add_node(name, None, "")
        self._entries[name] = None


def _check_name(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_ID_LEN:
        raise InvalidRequestError(
            f"name must be a string of at most {MAX_ID_LEN} characters", param="name"
        )
    return value


def _check_id(value: object, param: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID_LEN:
        raise InvalidRequestError(
            f"{param} must be a string of 1 to {MAX_ID_LEN} characters", param=param
        )
    return value


def _check_probability(value: object, param: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise InvalidRequestError(f"{param} must be a number in [0, 1]", param=param)
    return float(value)


def _value(data: Mapping[str, object], key: str, default: object) -> object:
    value = data.get(key)
    return default if value is None else value


def _record(item: object, param: str) -> Mapping[str, object]:
    if not isinstance(item, Mapping):
        raise InvalidRequestError(f"{param} must be an object", param=param)
    return item


def _items(
    data: Mapping[str, object], key: str, max_items: int, prefix: str = ""
) -> Iterator[tuple[str, object]]:
    """Yield (path, item) of the items of a list."""
    items, param = _value(data, key, ()), f"{prefix}{key}"
    if not isinstance(items, list | tuple):
        raise InvalidRequestError(f"{param} must be a list", param=param)
    if len(items) > max_items:
        raise InvalidRequestError(
            f"{param} must have at most {max_items} items, got {len(items)}", param=param
        )
    for i, item in enumerate(items):
        yield f"{param}[{i}]", item


def _edge_dict(edge: Edge) -> dict[str, object]:
    data: dict[str, object] = {
        "source": edge.source,
        "target": edge.target,
        "conditional": edge.conditional,
    }
    if edge.probability is not None:
        data["probability"] = edge.probability
    return data
