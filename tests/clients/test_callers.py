"""Whose calls a client makes, over all frameworks."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from kvflow_jax.clients.callers import Callers, graph_of
from kvflow_jax.clients.scopes import step_scope
from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.workflow.workflow import Workflow
from tests.clients.langgraph_fakes import Context, app, branch, node
from tests.clients.test_autogen_team import Core, flow
from tests.clients.test_openai_agents import Trace, Tracing, agent


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Context:
    return Context(monkeypatch)


def nodes_of(graph: object, first: str = "a") -> list[str]:
    text = graph_of(graph)(first)
    assert text is not None
    return [one["id"] for one in json.loads(text)["nodes"]]


def test_graphs_of_every_kind(context: Context) -> None:
    assert nodes_of(Workflow().edge("a", "b")) == ["a", "b"]
    assert nodes_of({"edges": [{"source": "a", "target": "b"}]}) == ["a", "b"]
    assert nodes_of(app({"a": node()}, [("__start__", "a")])) == ["a"]
    assert nodes_of(agent("a", [agent("b")])) == ["a", "b"]
    assert nodes_of(flow("a", a=[])) == ["a"]


def test_graphs_of_no_kind_and_broken_ones() -> None:
    for other in (7, "planner", SimpleNamespace(nodes=[]), [1]):
        with pytest.raises(TypeError, match="graph must be"):
            Callers().bind(other)
    with pytest.raises(InvalidRequestError, match="1 to 256 characters"):
        Callers().bind({"nodes": ["n" * 10_000]})


def test_a_workflow_that_changes_later_is_bound_as_it_was() -> None:
    workflow = Workflow().agent("a")
    callers = Callers()
    callers.bind(workflow)
    workflow.agent("b")
    assert callers.graph_of is not None
    assert "b" not in str(callers.graph_of("a"))
    callers.bind(workflow)
    assert '"b"' in str(callers.graph_of("a"))


def test_gaps_are_those_of_the_last_graph_of_a_kind(context: Context) -> None:
    callers = Callers()
    callers.bind(app({"a": node()}, [("__start__", "a")], branches={"a": {"route": branch()}}))
    callers.bind(agent("a", [SimpleNamespace()]))
    callers.bind(flow("a", a=[]))
    assert len(callers.gaps) == 2
    callers.bind(app({"a": node()}, [("__start__", "a")]))
    callers.bind(agent("a"))
    assert callers.gaps == []


def test_the_framework_that_is_running_names_the_call(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    callers = Callers()
    assert callers.current() is None
    core, tracing = Core(), Tracing()
    monkeypatch.setitem(sys.modules, "autogen_core", core)
    monkeypatch.setitem(sys.modules, "agents.tracing", tracing)
    callers.bind(flow("a", a=[]))
    callers.bind(agent("a"))
    found = []
    core.agent = SimpleNamespace(type="member_1", key="1")
    found.append(callers.current())
    tracing.enter("handed")
    tracing.trace = Trace()
    found.append(callers.current())
    context.enter("part", "node:task")
    found.append(callers.current())
    with step_scope("said", None):
        found.append(callers.current())
    assert [call and call.agent for call in found] == ["member", "handed", "node", "said"]
