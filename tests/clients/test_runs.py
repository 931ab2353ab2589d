"""Runs as clients name them."""

from __future__ import annotations

from kvflow_jax.clients.runs import Run
from kvflow_jax.workflow.workflow import MAX_ID_LEN


def test_a_run_has_a_name_that_the_server_accepts() -> None:
    assert Run("task-1").id == "task-1"
    assert len(Run("x" * 10_000).id) <= MAX_ID_LEN
    assert Run().id != Run().id


def test_a_run_keeps_the_graph_of_its_first_call() -> None:
    run = Run("r", lambda first: f"graph from {first}")
    assert run.graph_json("a") == run.graph_json("b") == "graph from a"


def test_a_run_without_a_graph_takes_another() -> None:
    def default(first: str) -> str:
        return "default"

    assert Run("r").graph_json("a") is None
    assert Run("r").graph_json("a", default) == "default"
    assert Run("r", lambda first: "own").graph_json("a", default) == "own"
    run = Run("r")
    run.take_graph(default)
    run.take_graph(None)
    run.take_graph(lambda first: "late")
    assert run.graph_of is default
    assert run.graph_json("a") == "default"


def test_the_end_is_told_once_for_each_key() -> None:
    told: list[str] = []
    run = Run("r")
    run.at_end("x", lambda keeps: told.append("first"))
    run.at_end("x", lambda keeps: told.append("again"))
    run.at_end("y", lambda keeps: told.append("other"))
    run.end()
    run.end()
    assert told == ["first", "other"]


def test_the_end_says_whether_conversations_go_on() -> None:
    told: list[bool] = []
    for keeps in (False, True):
        run = Run()
        run.at_end(0, told.append)
        if keeps:
            run.keep_sessions()
        run.end()
    assert told == [False, True]
