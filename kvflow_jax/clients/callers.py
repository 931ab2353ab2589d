"""All whose calls a client may make: frameworks, and the program itself."""

from __future__ import annotations

import json
from collections.abc import Mapping

from kvflow_jax.clients import scopes
from kvflow_jax.clients.autogen_team import AutoGenCaller, read_team
from kvflow_jax.clients.call import Call, Caller
from kvflow_jax.clients.langgraph_app import is_app
from kvflow_jax.clients.langgraph_runs import LangGraphCaller, attach
from kvflow_jax.clients.openai_agents import AgentsCaller, is_agent, read_agents
from kvflow_jax.clients.runs import GraphOf
from kvflow_jax.workflow.workflow import Workflow


def graph_of(graph: object) -> GraphOf:
    """Return a graph of any known kind, as a run takes it; TypeError if it is of none."""
    if isinstance(graph, Workflow | Mapping):
        data = graph.to_dict() if isinstance(graph, Workflow) else graph
        text = json.dumps(Workflow.from_dict(data).to_dict(), separators=(",", ":"))
        return lambda first: text
    if is_app(graph):
        return attach(graph).graph_json
    if is_agent(graph):
        return read_agents(graph).to_json
    team = read_team(graph)
    if team is not None:
        return team.to_json
    raise TypeError(
        "graph must be a compiled LangGraph app, an Agent of OpenAI's SDK, a team or DiGraph of "
        f"AutoGen, a Workflow or its JSON form, got {type(graph).__name__}"
    )


class Callers:
    """Finds whose call is being made. Frameworks that are not imported cost nothing.

    Attributes:
        graph_of: graph of runs that a program names without one.
    """

    def __init__(self) -> None:
        self.graph_of: GraphOf | None = None
        # The first one that knows the call says whose it is.
        self._callers: tuple[Caller, ...] = (LangGraphCaller(), AgentsCaller(), AutoGenCaller())

    @property
    def gaps(self) -> list[str]:
        """What the graphs do not say of themselves, one sentence each."""
        return [gap for caller in self._callers for gap in caller.gaps]

    def bind(self, graph: object) -> None:
        """Take a graph; TypeError if it is of no known kind."""
        if not any(caller.bind(graph) for caller in self._callers):
            self.graph_of = graph_of(graph)

    def current(self) -> Call | None:
        """Return the call that is being made, None if that is unknown."""
        calls = (caller.current() for caller in self._callers)
        return scopes.with_declared(next((call for call in calls if call is not None), None))
