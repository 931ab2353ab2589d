"""Graphs of LangGraph apps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from kvflow_jax.clients.langgraph_app import is_app, read_app, tool_nodes
from kvflow_jax.workflow.step_graph import NEVER, RunState
from kvflow_jax.workflow.workflow import Workflow
from tests.clients.langgraph_fakes import ToolNode, app, branch, node

Start, End = "__start__", "__end__"


def workflow_of(app: Any, first: str = "a") -> Workflow:
    text = read_app(app).to_json(first)
    assert text is not None
    return Workflow.from_dict(json.loads(text))


def edges_of(app: Any) -> dict[tuple[str, str], float | None]:
    return {
        (edge.source, edge.target): edge.probability if edge.conditional else None
        for edge in workflow_of(app).edges
    }


def nodes(names: str) -> dict[str, SimpleNamespace]:
    return {name: node() for name in names}


def test_what_is_an_app() -> None:
    assert is_app(app({}))
    assert is_app(SimpleNamespace(nodes={}, channels={}, get_graph=None, config=None))
    for other in (None, "app", SimpleNamespace(builder=None), SimpleNamespace(nodes={})):
        assert not is_app(other)


def test_edges_and_entries() -> None:
    two = app(nodes("ab"), [(Start, "a"), ("a", "b"), ("b", End)])
    assert edges_of(two) == {("a", "b"): None}
    assert workflow_of(two).entries == ("a",)


def test_apps_without_nodes_or_edges_have_no_graph() -> None:
    assert read_app(app({}, [(Start, End)])).to_json("a") is None
    functional = SimpleNamespace(nodes={"flow": object()}, channels={}, get_graph=None, config=None)
    assert read_app(functional).to_json("a") is None
    assert read_app(functional).gaps
    assert tool_nodes(functional) == set()


def test_waiting_edges_are_a_join_of_all() -> None:
    joined = app(nodes("abcd"), [(Start, "a"), ("a", "b"), ("a", "c")], waiting=[(("b", "c"), "d")])
    assert workflow_of(joined).joins == {"d": "all"}
    assert edges_of(joined).keys() == {("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")}


def test_a_node_waits_for_a_join_or_for_another_input() -> None:
    mixed = app(
        nodes("abcd"),
        [(Start, "a"), ("a", "b"), ("a", "c"), ("a", "d")],
        waiting=[(("b", "c"), "d")],
    )
    steps = []
    state = RunState(workflow_of(mixed).freeze())
    for agent in ("a", "d", "b", "c", "d"):
        steps.append(state.agent_steps()["d"])
        state.start(agent)
        state.finish(agent)
    assert steps == [1, 0, 1, 1, 0]


def test_nodes_of_which_a_join_or_a_graph_is_made_are_not_split() -> None:
    edges = [(Start, "a"), ("a", "b"), ("a", "c"), ("a", "d")]
    joined = app(nodes("abcde"), edges, waiting=[(("b", "c"), "d"), (("d", "c"), "e")])
    assert workflow_of(joined).joins == {"d": "any", "e": "all"}
    inner = app(nodes("x"), [(Start, "x")])
    within = app(nodes("abc") | {"d": node(inner)}, edges, waiting=[(("b", "c"), "d")])
    assert workflow_of(within).joins == {"d:x": "any"}


def test_nodes_of_one_superstep_end_together_and_others_do_not() -> None:
    """LangGraph runs what follows nodes of several supersteps after each of them."""
    together = app(nodes("abcd"), [(Start, "a"), ("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")])
    apart = app(
        nodes("abcde"),
        [(Start, "a"), ("a", "b"), ("a", "c"), ("c", "e"), ("b", "d"), ("e", "d")],
    )
    steps = {}
    for name, one in (("together", together), ("apart", apart)):
        state = RunState(workflow_of(one).freeze())
        for agent in ("a", "b"):
            state.start(agent)
            state.finish(agent)
        steps[name] = state.agent_steps()["d"]
    assert steps == {"together": 1, "apart": 0}


def test_a_deferred_node_waits_for_all() -> None:
    deferred = app(
        nodes("abc") | {"d": node(defer=True)},
        [(Start, "a"), ("a", "b"), ("b", "c"), ("a", "d"), ("c", "d")],
    )
    assert workflow_of(deferred).joins == {"d": "all"}


@pytest.mark.parametrize("ends", [{"x": "b", "y": End}, ("b", End)])
def test_a_router_is_a_choice(ends: Any) -> None:
    routed = app(nodes("ab"), [(Start, "a")], branches={"a": {"route": branch(ends)}})
    assert edges_of(routed) == {("a", "b"): 0.5}


class Send:
    """By its name, as LangGraph's."""


def test_a_router_that_sends_lists_chooses_none() -> None:
    def spread(state: object) -> list[Send]:
        raise NotImplementedError

    routed = app(
        nodes("abcd"),
        [(Start, "a")],
        [(("b", "c"), "d")],
        {"a": {"route": branch(["b", "c", End], spread)}},
    )
    assert edges_of(routed)[("a", "b")] is edges_of(routed)[("a", "c")] is None
    state = RunState(workflow_of(routed).freeze())
    for step in (state.start, state.finish):
        step("a")
    state.start("b")
    assert state.agent_steps() == {"a": NEVER, "b": 0, "c": 0, "d": 1}


def test_targets_are_read_from_the_type_that_a_router_returns() -> None:
    def route(state: object) -> Sequence[Literal["b", "c"]] | Literal["d"]:
        raise NotImplementedError

    routed = app(nodes("abcd"), [(Start, "a")], branches={"a": {"route": branch(None, route)}})
    assert set(edges_of(routed)) == {("a", "b"), ("a", "c"), ("a", "d")}
    assert not read_app(routed).gaps


def test_a_router_that_names_no_targets_may_choose_any_node() -> None:
    def route(state: object) -> unknown_type:  # type: ignore[name-defined] # noqa: F821
        raise NotImplementedError

    for function in (route, None, len):
        routed = app(
            nodes("abc"),
            [(Start, "a"), ("b", "c")],
            branches={"a": {"route": branch(None, function)}},
        )
        graph = read_app(routed)
        assert graph.gaps[0].startswith("the router 'route' of a does not name its targets")
        steps = RunState(workflow_of(routed).freeze()).agent_steps()
        assert steps == {"a": 0, "b": 1, "c": 1}


def test_the_ends_of_commands_are_choices() -> None:
    commanding = app({"a": node(ends=("b", "c", End, "elsewhere"))} | nodes("bc"), [(Start, "a")])
    third = pytest.approx(1 / 3)
    assert edges_of(commanding) == {("a", "b"): third, ("a", "c"): third}


def test_what_no_edge_leads_to_may_follow_what_none_leaves() -> None:
    commanding = app(
        nodes("abc") | {"handler": node(is_error_handler=True)}, [(Start, "a"), ("a", "b")]
    )
    assert edges_of(commanding) == {("a", "b"): None, ("b", "c"): 0.5, ("handler", "c"): 0.5}
    assert read_app(commanding).gaps == [
        "no edge leads to c: let the nodes before return Command[Literal[...]]"
    ]
    circle = app(nodes("abc"), [(Start, "a"), ("a", "a"), ("c", "a")])
    assert ("b", "c") in edges_of(circle)


def test_a_router_at_the_start_is_known_by_the_first_call() -> None:
    routed = app(
        nodes("abc"), [("a", "c"), ("b", "c")], branches={Start: {"r": branch(["a", "b"])}}
    )
    assert workflow_of(routed, "b").entries == ("b",)


def test_a_graph_within_a_graph_is_part_of_it() -> None:
    inner = app(
        nodes("xyz"), [(Start, "x"), ("x", "y"), ("x", "z"), ("y", End)]
    )  # z has no edge, and ends the graph as y does
    outer = app(
        nodes("ac") | {"b": node(SimpleNamespace(bound=inner))},
        [(Start, "a"), ("a", "b"), ("b", "c")],
    )
    assert edges_of(outer).keys() == {
        ("a", "b:x"),
        ("b:x", "b:y"),
        ("b:x", "b:z"),
        ("b:y", "c"),
        ("b:z", "c"),
    }
    assert "b" not in read_app(outer).nodes
    assert NEVER not in RunState(workflow_of(outer).freeze()).steps()


def test_a_graph_that_contains_itself_has_an_end() -> None:
    one = app({"a": node()}, [(Start, "a"), ("a", End)])
    one.builder.nodes["a"].runnable = one
    assert len(read_app(one).nodes) < 50
    assert tool_nodes(one) == set()


def test_nodes_that_run_tools() -> None:
    inner = app({"tools": node(type("MyTools", (ToolNode,), {})()), "x": node()})
    outer = app({"tools": node(ToolNode()), "a": node(), "b": node(inner)})
    assert tool_nodes(outer) == {"tools", "b:tools"}
