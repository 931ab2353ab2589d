"""The graph of a compiled LangGraph app.

``app.get_graph()`` draws it and loses what it waits for. The builder has it: its edges, the joins
among its waiting edges, the targets of its routers, and those that nodes name themselves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from kvflow_jax.clients.agent_graph import END, START, AgentGraph, Group

MAX_DEPTH = 8  # of graphs within graphs
SEPARATOR = ":"  # between the names of a node and of one within it; LangGraph allows it in none


def is_app(app: object) -> bool:
    """Return whether an object is a compiled app of LangGraph, one of its functional API too."""
    return _has_builder(app) or all(
        hasattr(app, name) for name in ("nodes", "channels", "get_graph", "config")
    )


def read_app(app: Any) -> AgentGraph:
    """Return the graph of an app. Nodes within a node that is a graph are named ``node:inner``.

    A router that does not name its targets may choose any node.
    """
    graph = AgentGraph()
    if not _has_builder(app):
        graph.gaps.append("an app of the functional API does not say which task follows which")
        return graph
    wrapped = _add(graph, app.builder, "", 0)
    graph = graph.without(wrapped)
    for node in wrapped:
        graph.nodes.pop(node, None)
    return graph


def tool_nodes(app: Any) -> set[str]:
    """Return the nodes that run tools: they call no model."""
    found: set[str] = set()
    if _has_builder(app):
        _find_tools(found, app.builder, "", 0)
    return found


def _has_builder(app: object) -> bool:
    builder = getattr(app, "builder", None)
    return all(hasattr(builder, name) for name in ("nodes", "edges", "waiting_edges", "branches"))


def _find_tools(found: set[str], builder: Any, prefix: str, depth: int) -> None:
    for name, spec in builder.nodes.items():
        inner = _graph_in(spec.runnable)
        if inner is not None and depth < MAX_DEPTH:
            _find_tools(found, inner.builder, f"{prefix}{name}{SEPARATOR}", depth + 1)
        elif any(one.__name__ == "ToolNode" for one in type(spec.runnable).__mro__):
            found.add(f"{prefix}{name}")


def _add(graph: AgentGraph, builder: Any, prefix: str, depth: int) -> list[str]:
    """Add a builder's nodes and edges; return the nodes that only stand for begins and ends."""
    wrapped: list[str] = []
    begin_of: dict[str, str] = {START: f"{prefix}{START}", END: f"{prefix}{END}"}
    end_of = dict(begin_of)
    for name, spec in builder.nodes.items():
        inner, node = _graph_in(spec.runnable), f"{prefix}{name}"
        begin_of[name] = end_of[name] = node
        if inner is None or depth >= MAX_DEPTH:
            graph.nodes.setdefault(node)
            continue
        within = f"{node}{SEPARATOR}"
        wrapped += _add(graph, inner.builder, within, depth + 1)
        begin_of[name], end_of[name] = f"{within}{START}", f"{within}{END}"
        wrapped += [begin_of[name], end_of[name]]
    edges = _Edges(builder, graph, prefix)
    for source, target in edges.always:
        graph.add_edge(end_of[source], begin_of[target])
    for source, targets in edges.choices:
        graph.add_choice(end_of[source], [begin_of[target] for target in targets])
    if depth:
        # A graph within a node is done when its last nodes are.
        for name in builder.nodes:
            if name not in edges.sources:
                graph.add_edge(end_of[name], end_of[END])
    for name, groups in edges.groups().items():
        is_whole = len(groups) == 1 or begin_of[name] in wrapped or name in edges.joined
        if is_whole:  # else several nodes would stand for one in a join, or in a graph of its own
            mode = groups[0][1] if len(groups) == 1 else "any"
            if mode is not None:
                graph.joins[begin_of[name]] = mode
        else:
            own = [([end_of[source] for source in sources], mode) for sources, mode in groups]
            graph.split(begin_of[name], own)
    return wrapped


class _Edges:
    """The edges of one builder, by the names that it gives its nodes."""

    def __init__(self, builder: Any, graph: AgentGraph, prefix: str) -> None:
        self._builder = builder
        self._waiting = [(tuple(sources), target) for sources, target in builder.waiting_edges]
        self.joined = {one for sources, _ in self._waiting if len(sources) > 1 for one in sources}
        self.plain = sorted(builder.edges)
        self.choices: list[tuple[str, list[str]]] = []
        for source, branches in builder.branches.items():
            for label, branch in branches.items():
                targets = _targets(branch)
                if targets is None:
                    graph.gaps.append(
                        f"the router {label!r} of {prefix}{source} does not name its targets: give "
                        "add_conditional_edges a path_map, or the router a return type of Literal"
                    )
                    targets = [*builder.nodes, END]
                if _returns_sends(branch):
                    self.plain += [(source, target) for target in targets if target != END]
                else:
                    self.choices.append((source, targets))
        for name, spec in builder.nodes.items():
            ends = [
                end for end in getattr(spec, "ends", None) or () if end in (*builder.nodes, END)
            ]
            if ends:  # of a Command
                self.choices.append((name, ends))
        self._add_unnamed(graph, prefix)
        self.sources = {source for source, _ in (*self.always, *self.choices)}

    def _add_unnamed(self, graph: AgentGraph, prefix: str) -> None:
        """Let nodes that no edge leads to follow those that no edge leaves: by a ``Command``."""
        sources = {source for source, _ in (*self.always, *self.choices)}
        targets = {target for _, target in self.always}
        targets.update(target for _, ends in self.choices for target in ends)
        lost = [
            name
            for name, spec in self._builder.nodes.items()
            if name not in targets and not getattr(spec, "is_error_handler", False)
        ]
        last = [name for name in self._builder.nodes if name not in sources]
        if lost and last:
            graph.gaps.append(
                f"no edge leads to {', '.join(prefix + name for name in lost)}: let the nodes "
                "before return Command[Literal[...]]"
            )
            for name in last:
                self.choices.append((name, [*(one for one in lost if one != name), END]))

    @property
    def always(self) -> list[tuple[str, str]]:
        """The edges that are always taken."""
        waiting = [(one, target) for sources, target in self._waiting for one in sources]
        return self.plain + waiting

    def groups(self) -> dict[str, list[Group]]:
        """Return the groups of inputs of each node that has several, each of which runs it alone.

        Nodes of a superstep end together, so that a node runs once after all of them. A node that
        follows nodes of several supersteps runs after each.
        """
        depth = self._depths()
        found: dict[str, list[Group]] = {}
        for name, spec in self._builder.nodes.items():
            chosen = [source for source, ends in self.choices if name in ends]
            waiting = [group for group, target in self._waiting if target == name]
            by_step: dict[int | None, list[str]] = {}
            for source, target in self.plain:
                if target == name and source != START:
                    by_step.setdefault(depth.get(source), []).append(source)
            plain = list(by_step.values())
            every = [source for group in (*waiting, *plain, chosen) for source in group]
            if len(every) < 2:
                continue
            if getattr(spec, "defer", False):
                found[name] = [(every, "any" if chosen else "all")]
                continue
            groups: list[Group] = [(group, "all") for group in waiting if len(group) > 1]
            groups += [(group, None) for group in plain if len(group) > 1]
            single = [group[0] for group in (*waiting, *plain) if len(group) == 1]
            if single or chosen:
                is_known = bool(groups) or not chosen
                groups.append(([*single, *chosen], "any" if is_known else None))
            found[name] = groups
        return found

    def _depths(self) -> dict[str, int]:
        """Return the number of supersteps before each node."""
        targets: dict[str, list[str]] = {}
        for source, target in self.always:
            targets.setdefault(source, []).append(target)
        for source, ends in self.choices:
            targets.setdefault(source, []).extend(ends)
        depth, queue = {START: 0}, deque([START])
        while queue:
            source = queue.popleft()
            for target in targets.get(source, ()):
                if target not in depth:
                    depth[target] = depth[source] + 1
                    queue.append(target)
        return depth


def _graph_in(runnable: Any) -> Any:
    """Return the app that a node is, None for other nodes."""
    for _ in range(MAX_DEPTH):
        if _has_builder(runnable):
            return runnable
        runnable = getattr(runnable, "bound", None)  # of ``with_config`` and the like
    return None


def _targets(branch: Any) -> list[str] | None:
    """Return what a router may choose, None if it does not say."""
    ends = getattr(branch, "ends", None)
    if ends:
        return list(ends.values() if isinstance(ends, Mapping) else ends)
    return list(_literals(_return_type(branch))) or None


def _returns_sends(branch: Any) -> bool:
    """Return whether a router returns a list of ``Send``: all of its targets run, side by side."""
    parts = get_args(_return_type(branch))
    return any(getattr(part, "__name__", "") == "Send" for part in parts)


def _return_type(branch: Any) -> object:
    path = getattr(branch, "path", None)
    function = getattr(path, "func", None) or getattr(path, "afunc", None)
    try:
        return get_type_hints(function).get("return")
    except Exception:  # of annotations whose names cannot be found
        return None


def _literals(annotation: Any) -> Iterable[str]:
    """Yield the texts of the ``Literal`` types within an annotation, such as a list of them."""
    if get_origin(annotation) is Literal:
        yield from (value for value in get_args(annotation) if isinstance(value, str))
    else:
        for part in get_args(annotation):
            yield from _literals(part)
