"""Runs of LangGraph apps as their callbacks tell them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvflow_jax.clients import langgraph_runs
from kvflow_jax.clients.call import Call
from kvflow_jax.clients.langgraph_runs import LangGraphCaller, LangGraphRuns, attach
from tests.clients.langgraph_fakes import Context, ToolNode, app, node

Start, End = "__start__", "__end__"


class GraphBubbleUp(Exception):  # noqa: N818
    """By its name, as LangGraph's."""


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Context:
    return Context(monkeypatch)


@pytest.fixture
def runs(context: Context) -> LangGraphRuns:
    names = ("a", "b", "c")
    edges = [(Start, "a"), ("a", "b"), ("b", "c"), ("c", "tools"), ("tools", "a")]
    return attach(app({name: node() for name in names} | {"tools": node(ToolNode())}, edges))


def begin(runs: LangGraphRuns, root: str, inputs: object = "input", **metadata: object) -> None:
    runs.on_chain_start(None, inputs, run_id=root, metadata=metadata, name="LangGraph")


def begin_node(
    runs: LangGraphRuns, parent: str, part: str, name: str, namespace: str | None = None
) -> None:
    runs.on_chain_start(
        None,
        {},
        run_id=part,
        parent_run_id=parent,
        metadata={"langgraph_checkpoint_ns": namespace or f"{name}:task"},
        name=name,
    )


def current(context: Context, part: str, name: str, *handlers: object, **metadata: Any) -> Call:
    context.enter(part, name if ":" in name else f"{name}:task", *handlers, **metadata)
    call = LangGraphCaller().current()
    assert call is not None
    return call


def nodes_of(runs: LangGraphRuns) -> set[str]:
    text = runs.graph_json("a")
    assert text is not None
    return {one["id"] for one in json.loads(text)["nodes"]}


def test_an_app_gets_one_handler(context: Context) -> None:
    one = app({"a": node()}, [(Start, "a")])
    assert attach(one) is attach(one)
    assert one.config["callbacks"] == [attach(one)]
    assert attach(one).run_inline  # type: ignore[attr-defined]


def test_a_call_has_its_run_and_its_node(context: Context, runs: LangGraphRuns) -> None:
    begin(runs, "root")
    begin_node(runs, "root", "part", "a")
    # A chain within the node.
    runs.on_chain_start(None, {}, run_id="chain", parent_run_id="part", name="RunnableSequence")
    first = current(context, "part", "a", runs)
    assert first.agent == "a"
    assert current(context, "chain", "a", object(), runs).run is first.run
    assert first.run is not None
    assert first.run.graph_json("a") == runs.graph_json("a")


def test_each_invocation_is_a_run(context: Context, runs: LangGraphRuns) -> None:
    found = []
    for root in ("1", "2"):
        begin(runs, root, thread_id="t")
        begin_node(runs, root, f"{root}.part", "a")
        found.append(current(context, f"{root}.part", "a", runs, thread_id="t"))
    first, second = found
    assert first.run is not None
    assert second.run is not None
    assert first.run.id != second.run.id
    assert first.conversation == second.conversation == "t||a"
    assert first.outlives_run


def test_the_end_is_that_of_the_whole_app(context: Context, runs: LangGraphRuns) -> None:
    told = []
    for root, error in (("1", None), ("2", ValueError())):
        begin(runs, root)
        begin_node(runs, root, f"{root}.part", "a")
        run = current(context, f"{root}.part", "a", runs).run
        assert run is not None
        run.at_end(0, lambda keeps, root=root: told.append(root))  # type: ignore[misc]
        runs.on_chain_end({}, run_id=f"{root}.part")
        assert root not in told
        if error is None:
            runs.on_chain_end({}, run_id=root)
        else:
            runs.on_chain_error(error, run_id=root)
        assert root in told
    runs.on_chain_end({}, run_id="unknown")
    runs.on_chain_error(ValueError(), run_id="unknown")


@pytest.mark.parametrize("answer", [None, type("Command", (), {})()])
def test_an_interrupted_run_goes_on_with_its_thread(
    context: Context, runs: LangGraphRuns, answer: object
) -> None:
    names = []
    for root, inputs in (("1", {}), ("2", answer), ("3", {}), ("4", answer)):
        begin(runs, root, inputs, thread_id="t")
        begin_node(runs, root, f"{root}.part", "a")
        run = current(context, f"{root}.part", "a", runs).run
        assert run is not None
        names.append(run.id)
        if root in "13":
            runs.on_chain_error(GraphBubbleUp(), run_id=f"{root}.part")
        runs.on_chain_end({}, run_id=root)
    first, resumed, other, resumed_other = names
    assert first == resumed != other == resumed_other


def test_nodes_that_call_no_model_leave_the_graph(context: Context, runs: LangGraphRuns) -> None:
    assert nodes_of(runs) == {"a", "b", "c"}  # not the tools
    begin(runs, "root")
    for name in ("a", "b"):
        begin_node(runs, "root", name, name)
        if name == "a":
            call = current(context, name, name, runs)
            assert call.on_sent is not None
            call.on_sent()
        runs.on_chain_end({}, run_id=name)
    assert nodes_of(runs) == {"a", "c"}
    runs.note_call("b")  # later it does
    assert nodes_of(runs) == {"a", "b", "c"}


def test_nodes_within_nodes(context: Context) -> None:
    inner = app({"x": node(), "y": node()}, [(Start, "x"), ("x", "y")])
    runs = attach(app({"a": node(inner), "b": node()}, [(Start, "a"), ("a", "b")]))
    begin(runs, "root")
    begin_node(runs, "root", "part", "a", "a:1")
    begin_node(runs, "part", "deep", "x", "a:1|x:2")
    assert current(context, "deep", "a:1|x:2", runs).agent == "a:x"
    assert current(context, "deep", "a:1|1|x:2", runs).agent == "a:x"
    # An app that a function calls within a node that the graph knows.
    assert current(context, "deep", "b:3|z:4", runs).agent == "b"
    assert current(context, "deep", "q:3|z:4", runs).agent == "q:z"  # of another app


def test_an_app_within_a_function_may_be_bound_itself(context: Context) -> None:
    inner = attach(app({"x": node()}, [(Start, "x")]))
    outer = attach(app({"a": node()}, [(Start, "a")]))
    begin(outer, "root")
    begin_node(outer, "root", "part", "a", "a:1")
    for handler in (outer, inner):
        handler.on_chain_start(
            None,
            {},
            run_id="inner",
            parent_run_id="part",
            metadata={"langgraph_checkpoint_ns": "a:1"},
            name="LangGraph",
        )
        begin_node(handler, "inner", "deep", "x", "a:1|x:2")
    assert current(context, "deep", "a:1|x:2", outer, inner).agent == "a"
    assert current(context, "deep", "a:1|x:2", inner).agent == "x"


def test_conversations_of_tasks_side_by_side_are_apart(
    context: Context, runs: LangGraphRuns
) -> None:
    begin(runs, "root")
    begin_node(runs, "root", "part", "a")
    names = [
        current(context, "part", namespace, runs, langgraph_path=path).conversation
        for namespace, path in (
            ("a:1", ("__pregel_pull", "a")),
            ("a:2", ("__pregel_pull", "a")),
            ("a:3", ("__pregel_push", 0, False)),
            ("a:4", ("__pregel_push", 1, False)),
            ("b:5|a:6", ()),
            ("b:7|a:8", ()),
        )
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 5


def test_an_app_that_nobody_has_bound(context: Context) -> None:
    alone = current(context, "part", "a")
    assert (alone.agent, alone.run, alone.conversation) == ("a", None, None)
    threaded = current(context, "part", "a", thread_id=7)
    assert threaded.run is not None
    assert threaded.run.id == "7"


def test_outside_of_an_app_there_is_no_call(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LangGraphCaller().current() is None
    context.config = {"metadata": {}}  # of LangChain alone
    assert LangGraphCaller().current() is None
    monkeypatch.undo()
    assert LangGraphCaller().current() is None


def test_what_is_known_of_runs_is_bounded(
    runs: LangGraphRuns, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(langgraph_runs, "MAX_LIVE", 4)
    monkeypatch.setattr(langgraph_runs, "MAX_THREADS", 2)
    for i in range(8):  # runs that never end
        begin(runs, f"root-{i}")
        begin_node(runs, f"root-{i}", f"part-{i}", "a")
    assert max(len(runs._run_of), len(runs._roots), len(runs._node_of)) <= 4
    for i in range(4):
        begin(runs, f"{i}", thread_id=i)
        begin_node(runs, f"{i}", f"{i}.part", "a")
        runs.on_chain_error(GraphBubbleUp(), run_id=f"{i}.part")
        runs.on_chain_end({}, run_id=f"{i}")
    assert len(runs._interrupted) == 2
