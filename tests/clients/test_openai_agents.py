"""Agents of OpenAI's SDK: their graph, and whose call is being made."""

from __future__ import annotations

import gc
import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kvflow_jax.clients import openai_agents
from kvflow_jax.clients.openai_agents import AgentsCaller, is_agent, read_agents
from kvflow_jax.workflow.workflow import Workflow


def agent(name: str, handoffs: Any = (), tools: Any = (), **settings: Any) -> SimpleNamespace:
    return SimpleNamespace(
        name=name, handoffs=list(handoffs), tools=list(tools), instructions=None, **settings
    )


def as_tool(one: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(name=f"ask_{one.name}", _agent_instance=one)


def workflow_of(start: Any) -> Workflow:
    text = read_agents(start).to_json(start.name)
    assert text is not None
    workflow = Workflow.from_dict(json.loads(text))
    workflow.freeze()
    return workflow


def edges_of(start: Any) -> dict[tuple[str, str], float | None]:
    return {(edge.source, edge.target): edge.probability for edge in workflow_of(start).edges}


def test_what_is_an_agent() -> None:
    assert is_agent(agent("a"))
    assert not is_agent(SimpleNamespace(name="a"))
    assert not is_agent(as_tool(agent("a")))


def test_handoffs_are_choices_and_may_return() -> None:
    billing, refunds = agent("billing"), agent("refunds")
    triage = agent("triage", [billing, SimpleNamespace(_agent_ref=lambda: refunds)])
    billing.handoffs.append(triage)
    third = pytest.approx(1 / 3)
    assert edges_of(triage) == {
        ("triage", "billing"): third,
        ("triage", "refunds"): third,
        ("billing", "triage"): 0.5,
    }
    assert workflow_of(triage).entries == ("triage",)


def test_an_agent_reads_the_results_of_its_tools() -> None:
    assert edges_of(agent("a", tools=[SimpleNamespace(name="weather")])) == {("a", "a"): 0.5}
    assert edges_of(agent("a", mcp_servers=[object()])) == {("a", "a"): 0.5}
    assert edges_of(agent("a", mcp_servers=[])) == {}


def test_an_agent_that_is_a_tool_returns() -> None:
    helper = agent("helper")
    other = agent("other")
    start = agent("start", tools=[as_tool(helper), as_tool(other)])
    workflow = workflow_of(start)
    assert {(edge.source, edge.target) for edge in workflow.edges} == {
        ("start", "helper"),
        ("start", "other"),
        ("helper", "start"),
        ("other", "start"),
    }
    assert workflow.joins == {"start": "any"}


def test_a_handoff_that_names_no_agent_is_a_gap() -> None:
    lost = agent(
        "lost", [SimpleNamespace(agent_name="x"), SimpleNamespace(_agent_ref=lambda: None)]
    )
    graph = read_agents(lost)
    assert graph.gaps == ["a handoff of lost does not say to which agent it leads"]


class Span:
    """A span that remembers the one before it, as the SDK's do."""

    def __init__(self, data: object, before: object = None) -> None:
        self.span_data = data
        if before is not None:
            self._prev_span_token = SimpleNamespace(old_value=before)


class AgentSpanData:
    def __init__(self, name: str) -> None:
        self.name = name


class Trace:
    pass


class Tracing(ModuleType):
    """The current span and trace, as ``agents.tracing`` gives them."""

    def __init__(self) -> None:
        super().__init__("agents.tracing")
        self.span: object = None
        self.trace: object = None

    def get_current_span(self) -> object:
        return self.span

    def get_current_trace(self) -> object:
        return self.trace

    def enter(self, *names: str) -> None:
        """Be within agents, the outermost first, and a span of another kind in each."""
        self.span = None
        for name in names:
            self.span = Span(object(), Span(AgentSpanData(name), self.span))


@pytest.fixture
def tracing(monkeypatch: pytest.MonkeyPatch) -> Tracing:
    tracing = Tracing()
    monkeypatch.setitem(sys.modules, "agents.tracing", tracing)
    return tracing


def test_the_innermost_agent_calls(tracing: Tracing) -> None:
    tracing.trace = Trace()
    caller = AgentsCaller()
    assert caller.bind(agent("asking"))
    tracing.enter("asking")
    asking = caller.current()
    tracing.enter("asking", "helper")
    helper = caller.current()
    assert asking is not None
    assert helper is not None
    assert (asking.agent, helper.agent) == ("asking", "helper")
    assert asking.run is helper.run is not None
    assert asking.run.graph_json("asking") == read_agents(agent("asking")).to_json("asking")
    assert asking.conversation != helper.conversation


def test_a_run_has_the_graph_of_the_agent_that_it_begins_with() -> None:
    caller = AgentsCaller()
    assert not caller.bind("agent")
    shared = agent("shared")
    for start in (agent("a", [shared]), agent("b", [shared]), agent("b", [shared, object()])):
        assert caller.bind(start)

    def begins(first: str) -> list[str]:
        text = caller.graph_json(first)
        return [] if text is None else json.loads(text)["entries"]

    assert [begins(first) for first in ("a", "b", "shared", "other")] == [["a"], ["b"], ["b"], []]
    assert len(caller.gaps) == 1  # of the second b


def test_the_number_of_graphs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_agents, "MAX_GRAPHS", 2)
    caller = AgentsCaller()
    for name in "abc":
        caller.bind(agent(name))
    assert caller.graph_json("a") is None
    assert caller.graph_json("c") is not None


def test_a_run_is_a_trace_and_ends_with_it(tracing: Tracing) -> None:
    caller = AgentsCaller()
    tracing.enter("a")
    told, names = [], set()
    for _ in range(2):
        tracing.trace = Trace()
        call = caller.current()
        assert call is not None
        assert call.run is not None
        assert call.run.graph_json("a") is None
        names.add(call.run.id)
        call.run.at_end(0, lambda keeps: told.append("over"))
        call = tracing.trace = None
        gc.collect()
    assert len(names) == 2
    assert told == ["over"] * 2


def test_without_a_trace_only_the_agent_is_known(tracing: Tracing) -> None:
    tracing.enter("n" * 10_000)
    call = AgentsCaller().current()
    assert call is not None
    assert call.agent is not None
    assert (len(call.agent) <= 256, call.run) == (True, None)


def test_outside_of_an_agent_there_is_no_call(
    tracing: Tracing, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert AgentsCaller().current() is None
    tracing.span = Span(object())
    assert AgentsCaller().current() is None
    around: object = Span(AgentSpanData("far"))
    for _ in range(1000):
        around = Span(object(), around)
    tracing.span = around
    assert AgentsCaller().current() is None
    monkeypatch.delitem(sys.modules, "agents.tracing")
    assert AgentsCaller().current() is None
