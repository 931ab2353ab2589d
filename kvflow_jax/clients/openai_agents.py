"""Agents of OpenAI's SDK: who hands off to whom, and whose call is being made."""

from __future__ import annotations

import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, TypeGuard

from kvflow_jax.clients.agent_graph import END, START, AgentGraph
from kvflow_jax.clients.call import Call
from kvflow_jax.clients.names import short_name
from kvflow_jax.clients.runs import Run

MAX_SPANS = 64  # around a call
MAX_GRAPHS = 1024


def is_agent(agent: object) -> TypeGuard[Any]:
    """Return whether an object is an agent of OpenAI's SDK."""
    return all(hasattr(agent, name) for name in ("name", "handoffs", "tools", "instructions"))


def read_agents(start: Any) -> AgentGraph:
    """Return the graph of the agents that can be reached from the one that a run begins with.

    After a call an agent reads the results of its tools, hands off, or ends the run. An agent that
    is a tool of another one returns to it.
    """
    graph = AgentGraph()
    graph.add_edge(START, start.name)
    waiting, seen = [start], set()
    while waiting:
        agent = waiting.pop()
        if agent.name in seen:
            continue
        seen.add(agent.name)
        helpers = [one for one in map(_agent_of_tool, agent.tools) if one is not None]
        others = [one for one in map(_agent_of_handoff, agent.handoffs) if one is not None]
        if len(others) < len(agent.handoffs):
            graph.gaps.append(f"a handoff of {agent.name} does not say to which agent it leads")
        targets = [one.name for one in (*helpers, *others)]
        if len(agent.tools) > len(helpers) or getattr(agent, "mcp_servers", None):
            targets.append(agent.name)
        if targets:
            graph.add_choice(agent.name, [*targets, END])
        for helper in helpers:
            graph.add_edge(helper.name, agent.name)
        waiting += [*helpers, *others]
    for name in graph.nodes:
        if len(graph.inputs_of(name)) > 1:
            graph.joins[name] = "any"
    graph.joins.pop(END, None)
    return graph


def _agent_of_handoff(handoff: Any) -> Any:
    if is_agent(handoff):
        return handoff
    reference = getattr(handoff, "_agent_ref", None)
    return reference() if callable(reference) else None


def _agent_of_tool(tool: Any) -> Any:
    agent = getattr(tool, "_agent_instance", None)
    return agent if is_agent(agent) else None


class AgentsCaller:
    """Finds the agent of the current call among the SDK's spans.

    There are spans without tracing, too.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._graphs: OrderedDict[str, AgentGraph] = OrderedDict()  # by first agent
        self._runs: weakref.WeakKeyDictionary[Any, Run] = weakref.WeakKeyDictionary()  # by trace

    @property
    def gaps(self) -> list[str]:
        return [gap for graph in self._graphs.values() for gap in graph.gaps]

    def bind(self, graph: object) -> bool:
        if not is_agent(graph):
            return False
        read = read_agents(graph)
        first = short_name(graph.name)
        with self._lock:
            self._graphs.pop(first, None)
            self._graphs[first] = read
            if len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
        return True

    def graph_json(self, first: str) -> str | None:
        """Return the graph of a run that begins with an agent: its own, else the last with it."""
        with self._lock:
            graphs = [self._graphs.get(first), *reversed(self._graphs.values())]
        for graph in graphs:
            if graph is not None and first in map(short_name, graph.nodes):
                return graph.to_json(first)
        return None

    def current(self) -> Call | None:
        tracing = sys.modules.get("agents.tracing")
        if tracing is None:
            return None
        agent = None
        for span in _spans(tracing.get_current_span()):
            data = span.span_data
            if type(data).__name__ == "AgentSpanData":
                agent = short_name(data.name)
                break
        if agent is None:
            return None
        trace = tracing.get_current_trace()
        if trace is None:
            return Call(agent)
        with self._lock:
            run = self._runs.get(trace)
            if run is None:
                run = self._runs[trace] = Run(graph_of=self.graph_json)
                weakref.finalize(trace, run.end).atexit = False
        # A session of the SDK goes on in later runs, and is not to be seen from here.
        name = short_name(f"{run.id}|{agent}")
        return Call(agent, run, conversation=name, outlives_run=True)


def _spans(span: Any) -> Iterator[Any]:
    """Yield the span of the moment and those around it."""
    for _ in range(MAX_SPANS):
        if not hasattr(span, "span_data"):
            return
        yield span
        # The span that was current before this one.
        span = getattr(getattr(span, "_prev_span_token", None), "old_value", None)
