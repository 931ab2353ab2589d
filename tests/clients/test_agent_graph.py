"""Graphs of applications, and the Agent Step Graphs that they become."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvflow_jax.clients.agent_graph import END, START, AgentGraph
from kvflow_jax.workflow.workflow import MAX_NODES, Workflow


def graph_of(*edges: tuple[Any, ...]) -> AgentGraph:
    graph = AgentGraph()
    for edge in edges:
        graph.add_edge(*edge)
    return graph


def form(graph: AgentGraph, first: str = "a") -> dict[str, Any]:
    text = graph.to_json(first)
    assert text is not None
    data: dict[str, Any] = json.loads(text)
    Workflow.from_dict(data).freeze()
    return data


def pairs(data: dict[str, Any]) -> dict[tuple[str, str], float | None]:
    return {
        (edge["source"], edge["target"]): edge.get("probability") if edge["conditional"] else None
        for edge in data["edges"]
    }


def test_begin_and_end_are_no_nodes() -> None:
    data = form(graph_of((START, "a"), ("a", "b", 0.5), ("a", END, 0.5), ("b", END)))
    assert [node["id"] for node in data["nodes"]] == ["a", "b"]
    assert data["entries"] == ["a"]
    assert pairs(data) == {("a", "b"): 0.5}


def test_a_choice_shares_its_chance_and_a_single_target_is_none() -> None:
    graph = AgentGraph()
    graph.add_choice("a", ["b", "c", END, "b"])
    graph.add_choice("b", ["c", "c"])
    third = pytest.approx(1 / 3)
    assert pairs(form(graph)) == {("a", "b"): third, ("a", "c"): third, ("b", "c"): None}


def test_edges_between_the_same_nodes_are_one() -> None:
    graph = graph_of(("a", "b", 0.25), ("a", "b", 0.5), ("a", "c", 0.5), ("a", "c"))
    assert pairs(form(graph)) == {("a", "b"): 0.75, ("a", "c"): None}


def test_a_run_begins_where_its_first_call_says() -> None:
    graph = AgentGraph()
    graph.add_edge(START, "always")
    graph.add_choice(START, ["a", "b"])
    assert form(graph, "a")["entries"] == ["always", "a"]
    assert form(graph, "b")["entries"] == ["always", "b"]
    assert form(graph, "elsewhere")["entries"] == ["always", "a", "b"]


def test_a_removed_node_is_bridged() -> None:
    graph = graph_of((START, "tools"), ("a", "tools", 0.5), ("a", END, 0.5), ("tools", "a"))
    graph = graph.without({"tools", "unknown"})
    data = form(graph)
    assert pairs(data) == {("a", "a"): 0.5}
    assert data["entries"] == ["a"]


def test_chances_multiply_over_a_removed_node() -> None:
    graph = AgentGraph()
    graph.add_choice("a", ["router", "b"])
    graph.add_choice("router", ["c", "d"])
    assert pairs(form(graph.without({"router"}))) == {
        ("a", "b"): 0.5,
        ("a", "c"): 0.25,
        ("a", "d"): 0.25,
    }


def test_what_waits_for_a_removed_join_waits_for_its_inputs() -> None:
    graph = graph_of(("a", "join"), ("b", "join"), ("join", "c"))
    graph.joins["join"] = "all"
    without = graph.without({"join"})
    assert form(without)["joins"] == [{"target": "c", "mode": "all", "sources": ["a", "b"]}]
    assert graph.joins == {"join": "all"}  # the graph itself is unchanged


def test_a_split_node_runs_for_each_group_of_its_inputs() -> None:
    graph = graph_of((START, "a"), ("a", "b"), ("a", "c"), ("b", "d"), ("c", "d"), ("d", "d", 0.25))
    graph.add_edge("d", "e", 0.5)
    graph.add_edge("e", "d")
    graph.split("d", [(["b", "c"], "all"), (["d", "e", "b"], "any")])
    data = form(graph)
    assert pairs(data) == {
        ("a", "b"): None,
        ("a", "c"): None,
        ("b", "d"): None,
        ("c", "d"): None,
        ("d", "e"): 0.5,
        ("d", "d#2"): 0.25,
        ("d#2", "e"): 0.5,
        ("d#2", "d#2"): 0.25,
        ("e", "d#2"): None,
    }
    modes = {join["target"]: join["mode"] for join in data["joins"]}
    assert modes == {"d": "all", "d#2": "any", "e": "any"}
    assert {"id": "d#2", "agent": "d"} in data["nodes"]
    left = form(graph.without({"d"}))
    assert [node["id"] for node in left["nodes"]] == ["a", "b", "c", "e"]


def test_a_group_of_known_inputs_is_no_node_and_names_do_not_collide() -> None:
    graph = graph_of(("a", "c"), ("b", "c"), ("d", "c"), ("c#3", "c"))
    graph.split("c", [(["a", "b"], None), (["b", "a"], "any"), (["d"], "any")])
    assert form(graph)["nodes"][-1] == {"id": "c#3'", "agent": "c"}
    assert not graph.joins


def test_long_names_are_shortened_everywhere() -> None:
    graph = graph_of((START, "n" * 10_000), ("n" * 10_000, "m" * 10_000))
    data = form(graph)
    assert pairs(data).keys() == {tuple(node["id"] for node in data["nodes"])}
    assert data["entries"] == [data["nodes"][0]["id"]]


def test_no_graph_without_nodes_or_with_too_many(caplog: pytest.LogCaptureFixture) -> None:
    assert AgentGraph().to_json("a") is None
    assert graph_of((START, END)).to_json("a") is None
    many = AgentGraph(nodes=dict.fromkeys(str(i) for i in range(MAX_NODES + 1)))
    assert many.to_json("a") is None
    assert "at most 4096 nodes" in caplog.text
