"""Teams of AutoGen: the graph of a flow, and whose call is being made."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kvflow_jax.clients import autogen_team
from kvflow_jax.clients.agent_graph import AgentGraph
from kvflow_jax.clients.autogen_team import AutoGenCaller, flow_of, read_flow
from kvflow_jax.workflow.workflow import Workflow


def edge(
    target: str, condition: Any = None, function: Any = None, group: str = "", mode: str = "all"
) -> SimpleNamespace:
    return SimpleNamespace(
        target=target,
        condition=condition,
        condition_function=function,
        activation_group=group or target,
        activation_condition=mode,
    )


def flow(start: str, **edges: list[SimpleNamespace]) -> SimpleNamespace:
    nodes = {name: SimpleNamespace(edges=of_node) for name, of_node in edges.items()}
    return SimpleNamespace(nodes=nodes, get_start_nodes=lambda: {start})


def workflow_of(one: Any) -> Workflow:
    text = read_flow(one).to_json("a")
    assert text is not None
    workflow = Workflow.from_dict(json.loads(text))
    workflow.freeze()
    return workflow


def test_the_graph_of_a_team() -> None:
    graph = flow("a", a=[])
    assert flow_of(graph) is graph
    assert flow_of(SimpleNamespace(_graph=graph)) is graph
    for other in (None, "a", SimpleNamespace(nodes={}), SimpleNamespace(_graph=None)):
        assert flow_of(other) is None


def test_activation_is_how_a_node_waits() -> None:
    workflow = workflow_of(
        flow(
            "a",
            a=[edge("b"), edge("c")],
            b=[edge("all"), edge("any", mode="any")],
            c=[edge("all"), edge("any", mode="any")],
            all=[],
            any=[],
        )
    )
    assert workflow.joins == {"all": "all", "any": "any"}
    assert workflow.entries == ("a",)


def test_conditions_are_choices() -> None:
    workflow = workflow_of(
        flow("a", a=[edge("b", "APPROVE"), edge("c", None, callable)], b=[], c=[])
    )
    assert [(one.target, one.probability) for one in workflow.edges] == [("b", 0.5), ("c", 0.5)]
    alone = workflow_of(flow("a", a=[edge("b", "APPROVE")], b=[]))
    assert alone.edges[0].conditional


def test_each_group_of_a_node_activates_it_alone() -> None:
    workflow = workflow_of(
        flow("a", a=[edge("b", group="first")], b=[edge("c")], c=[edge("b", "again", group="loop")])
    )
    assert workflow.joins == {"b": "any"}


class Core(ModuleType):
    """The agent whose message is handled, as ``autogen_core`` gives it."""

    def __init__(self) -> None:
        super().__init__("autogen_core")
        self.agent: SimpleNamespace | None = None
        self.MessageHandlerContext = SimpleNamespace(agent_id=self._agent_id)

    def _agent_id(self) -> SimpleNamespace:
        if self.agent is None:
            raise RuntimeError("must be called within a message handler")
        return self.agent


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Core:
    core = Core()
    monkeypatch.setitem(sys.modules, "autogen_core", core)
    return core


def test_the_agent_whose_message_is_handled_calls(core: Core) -> None:
    graph = AgentGraph(nodes={"planner_1": None})
    caller = AutoGenCaller(graph)
    core.agent = SimpleNamespace(type="planner_1_team-id", key="team-id")
    call, again = caller.current(), caller.current()
    assert call is not None
    assert again is not None
    assert call.run is not None
    assert (call.agent, call.run.id) == ("planner_1", "team-id")
    assert call.run is again.run
    assert call.run.graph_json("planner_1") == graph.to_json("planner_1")


def test_outside_of_a_team_there_is_no_call(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    assert AutoGenCaller().current() is None
    monkeypatch.delitem(sys.modules, "autogen_core")
    assert AutoGenCaller().current() is None


def test_the_number_of_teams_is_bounded(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autogen_team, "MAX_TEAMS", 2)
    caller = AutoGenCaller()
    for team in ("1", "2", "1", "3"):
        core.agent = SimpleNamespace(type=f"a_{team}", key=team)
        assert caller.current() is not None
    assert list(caller._runs) == ["1", "3"]
