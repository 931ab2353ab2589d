"""All whose calls a client may make: frameworks, and the program itself."""

from __future__ import annotations

import json
from collections.abc import Mapping

from kvflow_jax.clients import autogen_team, langgraph_app, langgraph_runs, openai_agents, scopes
from kvflow_jax.clients.call import Call, Caller
from kvflow_jax.clients.runs import GraphOf
from kvflow_jax.workflow.workflow import Workflow


def graph_of(graph: object) -> GraphOf:
    """Return a graph of any known kind, as a run takes it; TypeError if it is of none."""
    flow = autogen_team.flow_of(graph)
    if isinstance(graph, Workflow | Mapping):
        return _declared(graph)
    if langgraph_app.is_app(graph):
        return langgraph_runs.attach(graph).graph_json
    if openai_agents.is_agent(graph):
        return openai_agents.read_agents(graph).to_json
    if flow is not None:
        return autogen_team.read_flow(flow).to_json
    raise TypeError(
        "graph must be a compiled LangGraph app, an Agent of OpenAI's SDK, a GraphFlow or DiGraph "
        f"of AutoGen, a Workflow or its JSON form, got {type(graph).__name__}"
    )


def _declared(graph: Workflow | Mapping[str, object]) -> GraphOf:
    data = graph.to_dict() if isinstance(graph, Workflow) else graph
    text = json.dumps(Workflow.from_dict(data).to_dict(), separators=(",", ":"))
    return lambda first: text


class Callers:
    """Finds whose call is being made. Frameworks that are not imported cost nothing.

    Attributes:
        graph_of: graph of runs that a program names without one.
    """

    def __init__(self) -> None:
        self.graph_of: GraphOf | None = None
        self._gaps: dict[str, list[str]] = {}
        # The first one that knows the call says whose it is.
        self._callers: dict[str, Caller] = {
            "langgraph": langgraph_runs.LangGraphCaller(),
            "agents": openai_agents.AgentsCaller(),
            "autogen": autogen_team.AutoGenCaller(),
        }

    @property
    def gaps(self) -> list[str]:
        """What the graphs do not say of themselves."""
        return [gap for gaps in self._gaps.values() for gap in gaps]

    def bind(self, graph: object) -> None:
        """Take a graph; TypeError if it is of no known kind."""
        flow = autogen_team.flow_of(graph)
        if langgraph_app.is_app(graph):
            self._gaps["langgraph"] = langgraph_runs.attach(graph).graph.gaps
        elif openai_agents.is_agent(graph):
            agents = openai_agents.read_agents(graph)
            self._callers["agents"] = openai_agents.AgentsCaller(agents)
            self._gaps["agents"] = agents.gaps
        elif flow is not None:
            self._callers["autogen"] = autogen_team.AutoGenCaller(autogen_team.read_flow(flow))
        else:
            self.graph_of = graph_of(graph)

    def current(self) -> Call | None:
        """Return the call that is being made, None if that is unknown."""
        calls = (caller.current() for caller in self._callers.values())
        return scopes.with_declared(next((call for call in calls if call is not None), None))
