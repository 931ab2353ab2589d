"""Teams of AutoGen: the graph of a flow, and whose call is being made."""

from __future__ import annotations

import json
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from kvflow_jax.clients import autogen_team
from kvflow_jax.clients.autogen_team import AutoGenCaller, read_team
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
    graph = read_team(one)
    assert graph is not None
    text = graph.to_json("a")
    assert text is not None
    workflow = Workflow.from_dict(json.loads(text))
    workflow.freeze()
    return workflow


def member(name: str, *handoffs: str) -> SimpleNamespace:
    targets = {one: SimpleNamespace(target=one) for one in handoffs}
    return SimpleNamespace(name=name, _handoffs=targets)


def team(kind: str, *members: SimpleNamespace, team_id: str = "id", **settings: Any) -> Any:
    one = type(kind, (), {})()
    vars(one).update(_participants=list(members), _team_id=team_id, **settings)
    return one


def edges_of(one: Any) -> list[tuple[str, str]]:
    return [(edge.source, edge.target) for edge in workflow_of(one).edges]


def test_what_has_a_graph() -> None:
    graph = flow("a", a=[edge("b")], b=[])
    assert edges_of(graph) == edges_of(team("GraphFlow", _graph=graph)) == [("a", "b")]
    for other in (None, "a", SimpleNamespace(nodes={}), SimpleNamespace(_graph=None)):
        assert read_team(other) is None


def test_participants_of_a_round_robin_speak_in_their_order() -> None:
    circle = team("RoundRobinGroupChat", member("a"), member("b"), member("c"))
    assert edges_of(circle) == [("a", "b"), ("b", "c"), ("c", "a")]
    assert workflow_of(circle).entries == ("a",)
    assert edges_of(team("RoundRobinGroupChat", member("a"))) == [("a", "a")]


def test_participants_of_a_swarm_hand_off_or_go_on() -> None:
    swarm = team("Swarm", member("a", "b"), SimpleNamespace(name="b"))
    assert edges_of(swarm) == [("a", "a"), ("a", "b"), ("b", "b")]


def test_of_other_teams_only_the_agents_are_known() -> None:
    graph = read_team(team("SelectorGroupChat", member("a"), member("b")))
    assert graph is not None
    assert graph.to_json("a") is None
    assert graph.gaps == ["a SelectorGroupChat does not say who speaks after whom"]


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


def test_a_node_of_several_groups_is_split_where_one_of_them_is_a_join() -> None:
    looped = flow(
        "a",
        a=[edge("b"), edge("c")],
        b=[edge("d", group="work")],
        c=[edge("d", group="work")],
        d=[edge("e")],
        e=[edge("d", "again", group="again")],
    )
    workflow = workflow_of(looped)
    assert workflow.joins == {"d": "all", "e": "any"}
    assert [node for node, agent in workflow.nodes.items() if agent == "d"] == ["d", "d#2"]
    looped.nodes["d"].edges = [edge("f")]
    looped.nodes["e"].edges.append(edge("f"))
    looped.nodes["f"] = SimpleNamespace(edges=[])
    assert workflow_of(looped).joins == {"d": "any", "f": "all"}


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


def graph_of(caller: AutoGenCaller, core: Core, team_id: str) -> str | None:
    core.agent = SimpleNamespace(type=f"a_{team_id}", key=team_id)
    call = caller.current()
    assert call is not None
    assert call.run is not None
    return call.run.graph_json("a")


def test_the_agent_whose_message_is_handled_calls(core: Core) -> None:
    caller = AutoGenCaller()
    core.agent = SimpleNamespace(type="planner_1_team-id", key="team-id")
    call, again = caller.current(), caller.current()
    assert call is not None
    assert again is not None
    assert call.run is not None
    assert (call.agent, call.run.id) == ("planner_1", "team-id")
    assert call.run is again.run


def test_each_team_has_its_graph(core: Core) -> None:
    caller = AutoGenCaller()
    assert not caller.bind("team")
    assert graph_of(caller, core, "1") is None
    for team_id, name in (("1", "first"), ("2", "second"), ("", "any"), ("2", "changed")):
        graph = flow(name, **{name: []})
        assert caller.bind(team("GraphFlow", team_id=team_id, _graph=graph) if team_id else graph)
    found = [str(graph_of(caller, core, team_id)) for team_id in "123"]
    assert ["first" in found[0], "changed" in found[1], "any" in found[2]] == [True] * 3
    assert caller.gaps == []


def test_outside_of_a_team_there_is_no_call(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    assert AutoGenCaller().current() is None
    monkeypatch.delitem(sys.modules, "autogen_core")
    assert AutoGenCaller().current() is None


def test_the_number_of_teams_is_bounded(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autogen_team, "MAX_TEAMS", 2)
    caller = AutoGenCaller()
    for team_id in ("1", "2", "1", "3"):
        caller.bind(team("Swarm", member("a"), team_id=team_id))
        assert graph_of(caller, core, team_id) is not None
    assert list(caller._runs) == list(caller._graphs) == ["1", "3"]
