"""Teams of AutoGen: the graph of a flow, and whose call is being made."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

from kvflow_jax.clients.agent_graph import END, START, AgentGraph
from kvflow_jax.clients.call import Call
from kvflow_jax.clients.names import short_name
from kvflow_jax.clients.runs import Run

MAX_TEAMS = 1024  # whose graph is kept as text


def flow_of(team: object) -> Any:
    """Return the ``DiGraph`` that an object is or has, None if there is none."""
    for graph in (team, getattr(team, "_graph", None)):
        if hasattr(graph, "get_start_nodes") and hasattr(graph, "nodes"):
            return graph
    return None


def read_flow(flow: Any) -> AgentGraph:
    """Return the graph of a ``DiGraph``.

    Edges with conditions are choices. A node waits for the edges of a group, as their activation
    says; each of its groups activates it alone.
    """
    graph = AgentGraph()
    for start in sorted(flow.get_start_nodes()):
        graph.add_edge(START, start)
    groups: dict[str, dict[str, tuple[str, int]]] = {}  # of a node: its groups, mode and number
    for name, node in flow.nodes.items():
        graph.nodes.setdefault(name)
        chosen = [edge for edge in node.edges if _is_conditional(edge)]
        for edge in node.edges:
            graph.add_edge(name, edge.target, 1.0 / len(chosen) if edge in chosen else None)
            of_node = groups.setdefault(edge.target, {})
            _, num = of_node.get(edge.activation_group, ("", 0))
            of_node[edge.activation_group] = (edge.activation_condition, num + 1)
        if not node.edges:
            graph.add_edge(name, END)
    for name, of_node in groups.items():
        modes = list(of_node.values())
        if sum(num for _, num in modes) > 1:
            graph.joins[name] = "all" if len(modes) == 1 and modes[0][0] == "all" else "any"
    return graph


def _is_conditional(edge: Any) -> bool:
    return edge.condition is not None or edge.condition_function is not None


class AutoGenCaller:
    """Finds the agent of the current call in AutoGen's own context variable.

    A run is that of a team. When its graph has come to its end, the next call begins it again.

    Args:
        graph: None if only agents and runs are named.
    """

    def __init__(self, graph: AgentGraph | None = None) -> None:
        self._graph_of = None if graph is None else graph.to_json
        self._runs: OrderedDict[str, Run] = OrderedDict()  # by team

    def current(self) -> Call | None:
        core = sys.modules.get("autogen_core")
        if core is None:
            return None
        try:
            handler = core.MessageHandlerContext.agent_id()
        except RuntimeError:  # outside of a team
            return None
        # An agent's type is its name, followed by the id of its team.
        agent = short_name(str(handler.type).removesuffix(f"_{handler.key}"))
        run = self._runs.pop(handler.key, None) or Run(handler.key, self._graph_of)
        self._runs[handler.key] = run
        if len(self._runs) > MAX_TEAMS:
            self._runs.popitem(last=False)
        name = short_name(f"{run.id}|{agent}")
        return Call(agent, run, conversation=name, outlives_run=True)
