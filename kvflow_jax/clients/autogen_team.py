"""Teams of AutoGen: who follows whom, and whose call is being made."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from kvflow_jax.clients.agent_graph import END, START, AgentGraph
from kvflow_jax.clients.call import Call
from kvflow_jax.clients.names import short_name
from kvflow_jax.clients.runs import Run
from kvflow_jax.workflow.workflow import JoinMode

MAX_TEAMS = 1024  # whose graph, or run, is known


def read_team(team: Any) -> AgentGraph | None:
    """Return the graph of a team or of a ``DiGraph``; None for what is neither.

    Round robins and swarms have a graph, too: who speaks next is their participants' order, or
    their handoffs. Of other teams only the agents are known.
    """
    for flow in (team, getattr(team, "_graph", None)):
        if hasattr(flow, "get_start_nodes") and hasattr(flow, "nodes"):
            return _read_flow(flow)
    participants = getattr(team, "_participants", None)
    if not participants or not hasattr(team, "_team_id"):
        return None
    kinds = {one.__name__ for one in type(team).__mro__}
    if "RoundRobinGroupChat" in kinds:
        return _read_circle(participants)
    if "Swarm" in kinds:
        return _read_swarm(participants)
    graph = AgentGraph()
    graph.gaps.append(f"a {type(team).__name__} does not say who speaks after whom")
    return graph


def _read_flow(flow: Any) -> AgentGraph:
    """Return the graph of a ``DiGraph``.

    Edges with conditions are choices. A node waits for the edges of a group, as their activation
    says; each of its groups activates it alone.
    """
    graph = AgentGraph()
    for start in sorted(flow.get_start_nodes()):
        graph.add_edge(START, start)
    # Of each node, its groups: their sources and how it waits for them.
    groups: dict[str, dict[str, tuple[list[str], JoinMode]]] = {}
    for name, node in flow.nodes.items():
        graph.nodes.setdefault(name)
        chosen = [edge for edge in node.edges if _is_conditional(edge)]
        for edge in node.edges:
            graph.add_edge(name, edge.target, 1.0 / len(chosen) if edge in chosen else None)
            of_node = groups.setdefault(edge.target, {})
            mode: JoinMode = "any" if edge.activation_condition == "any" else "all"
            of_node.setdefault(edge.activation_group, ([], mode))[0].append(name)
        if not node.edges:
            graph.add_edge(name, END)
    every = [group for of_node in groups.values() for group in of_node.values()]
    joined = {
        one for sources, mode in every if mode == "all" and len(sources) > 1 for one in sources
    }
    for name, of_node in groups.items():
        own = sorted(of_node.values(), key=lambda group: group[1])  # first those that wait for all
        if len(own) == 1:
            sources, mode = own[0]
            if len(sources) > 1:
                graph.joins[name] = mode
        elif own[0][1] == "all" and len(own[0][0]) > 1 and name not in joined:
            graph.split(name, own)
        else:
            graph.joins[name] = "any"
    return graph


def _is_conditional(edge: Any) -> bool:
    return edge.condition is not None or edge.condition_function is not None


def _read_circle(participants: Sequence[Any]) -> AgentGraph:
    graph = AgentGraph()
    names = [one.name for one in participants]
    graph.add_edge(START, names[0])
    for source, target in zip(names, names[1:] + names[:1], strict=True):
        graph.add_edge(source, target)
    return graph


def _read_swarm(participants: Sequence[Any]) -> AgentGraph:
    """Return who hands off to whom. A participant that does not hand off speaks again."""
    graph = AgentGraph()
    graph.add_edge(START, participants[0].name)
    for one in participants:
        handoffs = getattr(one, "_handoffs", None) or {}
        targets = [handoff.target for handoff in handoffs.values()]
        graph.add_choice(one.name, [one.name, *targets])
    return graph


class AutoGenCaller:
    """Finds the agent of the current call in AutoGen's own context variable.

    A run is that of a team. When its graph has come to its end, the next call begins it again.
    """

    def __init__(self) -> None:
        # By id of the team; "" for a graph that was bound without one.
        self._graphs: OrderedDict[str, AgentGraph] = OrderedDict()
        self._runs: OrderedDict[str, Run] = OrderedDict()

    @property
    def gaps(self) -> list[str]:
        return [gap for graph in self._graphs.values() for gap in graph.gaps]

    def bind(self, graph: object) -> bool:
        read = read_team(graph)
        if read is None:
            return False
        team = str(getattr(graph, "_team_id", ""))
        self._graphs.pop(team, None)
        self._graphs[team] = read
        if len(self._graphs) > MAX_TEAMS:
            self._graphs.popitem(last=False)
        if team:
            self._runs.pop(team, None)
        else:
            self._runs.clear()
        return True

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
        run = self._run_of(handler.key)
        name = short_name(f"{run.id}|{agent}")
        return Call(agent, run, conversation=name, outlives_run=True)

    def _run_of(self, team: str) -> Run:
        run = self._runs.pop(team, None)
        if run is None:
            graph = self._graphs.get(team) or self._graphs.get("")
            run = Run(team, None if graph is None else graph.to_json)
        self._runs[team] = run
        if len(self._runs) > MAX_TEAMS:
            self._runs.popitem(last=False)
        return run
