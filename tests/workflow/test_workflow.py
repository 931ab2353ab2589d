"""Workflows as users build them, and their JSON form."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.workflow.step_graph import Edge
from kvflow_jax.workflow.workflow import MAX_EDGES, MAX_ID_LEN, MAX_NODES, Workflow
from tests.support.step_graphs import chain, play, run_of


def test_the_graph_is_the_same_object_until_the_workflow_changes():
    workflow = chain("a", "b")
    first = workflow.freeze()
    assert workflow.freeze() is first
    assert workflow.edge("b", "c").freeze() is not first
    for change in (
        lambda: workflow.agent("d"),
        lambda: workflow.join("c", "any"),
        lambda: workflow.entry("b"),
    ):
        before = workflow.freeze()
        change()
        assert workflow.freeze() is not before
    assert first.names == ("a", "b")


def test_a_workflow_shows_its_declarations():
    workflow = chain("plan", "code").node("again", agent="plan").agent("plan").join("code", "any")
    workflow.edge("code", "again", probability=0.25).node("code", agent="coder").edge(
        "plan", "code"
    )
    assert dict(workflow.nodes) == {"plan": "plan", "code": "coder", "again": "plan"}
    assert workflow.edges == (Edge("plan", "code"), Edge("code", "again", True, 0.25))
    assert dict(workflow.joins) == {"code": "any"}


def test_the_json_form_of_a_step_graph_is_read():
    workflow = Workflow.from_dict(
        {
            "name": "review",
            "nodes": ["plan", {"id": "review-2", "agent": "reviewer"}, {"id": "x", "agent": None}],
            "edges": [
                {"source": "plan", "target": "code", "label": "unknown keys are ignored"},
                {"source": "code", "target": "review-2", "conditional": True, "probability": 1},
                {"source": "code", "target": "x", "conditional": None, "probability": None},
            ],
            "joins": [
                {"target": "merge", "mode": "any", "sources": ["plan", "x"]},
                {"target": "review-2", "sources": ["code"]},
            ],
            "entries": ["plan"],
        }
    )
    assert workflow.name == "review"
    assert list(workflow.nodes) == ["plan", "review-2", "x", "code", "merge"]
    assert workflow.nodes["review-2"] == "reviewer"
    assert workflow.edges == (
        Edge("plan", "code"),
        Edge("code", "review-2", True, 1.0),
        Edge("code", "x"),
        Edge("plan", "merge"),
        Edge("x", "merge"),
    )
    assert dict(workflow.joins) == {"merge": "any", "review-2": "all"}
    assert workflow.entries == ("plan",)
    assert Workflow.from_dict({"nodes": None}).to_dict() == {"nodes": [], "edges": []}


IDS = st.sampled_from(["a", "b", "c", "d", "é"])


@given(
    st.lists(st.tuples(IDS, st.none() | IDS)),
    st.lists(st.tuples(IDS, IDS, st.booleans(), st.none() | st.floats(0, 1))),
    st.lists(st.tuples(IDS, st.sampled_from(["all", "any"]))),
    st.lists(IDS),
)
def test_a_workflow_survives_its_json_form(nodes, edges, joins, entries):
    workflow = Workflow("w")
    for node in nodes:
        workflow.node(*node)
    for edge in edges:
        workflow.edge(*edge)
    for join in joins:
        workflow.join(*join)
    for entry in entries:
        workflow.entry(entry)
    again = Workflow.from_dict(workflow.to_dict())
    assert again.to_dict() == workflow.to_dict()
    assert again.edges == workflow.edges
    assert vars(again.freeze()) == vars(workflow.freeze())


LONG = "x" * (MAX_ID_LEN + 1)


@pytest.mark.parametrize(
    ("data", "param", "message"),
    [
        ([], None, "an object"),
        ({"name": 3}, "name", "at most 256"),
        ({"name": LONG}, "name", "at most 256"),
        ({"nodes": "plan"}, "nodes", "a list"),
        ({"nodes": {"id": "plan"}}, "nodes", "a list"),
        ({"nodes": [3]}, "nodes[0]", "an object"),
        ({"nodes": ["plan", ""]}, "nodes[1].id", "1 to 256"),
        ({"nodes": [{}]}, "nodes[0].id", "1 to 256"),
        ({"nodes": [{"id": LONG}]}, "nodes[0].id", "1 to 256"),
        ({"nodes": [{"id": "a", "agent": 3}]}, "nodes[0].agent", "1 to 256"),
        ({"nodes": [{"id": "a", "agent": ""}]}, "nodes[0].agent", "1 to 256"),
        ({"edges": 7}, "edges", "a list"),
        ({"edges": [["a", "b"]]}, "edges[0]", "an object"),
        ({"edges": [{"target": "a"}]}, "edges[0].source", "1 to 256"),
        ({"edges": [{"source": "a", "target": ["b"]}]}, "edges[0].target", "1 to 256"),
        ({"joins": [{"target": {}}]}, "joins[0].target", "1 to 256"),
        ({"joins": [{"target": "a", "mode": "some"}]}, "joins[0].mode", "'all' or 'any'"),
        ({"joins": [{"target": "a", "mode": []}]}, "joins[0].mode", "'all' or 'any'"),
        ({"joins": [{"target": "a", "sources": "b"}]}, "joins[0].sources", "a list"),
        ({"joins": [{"target": "a", "sources": [[]]}]}, "joins[0].sources[0]", "1 to 256"),
        ({"joins": [None]}, "joins[0]", "an object"),
        ({"entries": "a"}, "entries", "a list"),
        ({"entries": [True]}, "entries[0]", "1 to 256"),
    ],
)
def test_a_bad_step_graph_names_the_field_and_its_bound(data, param, message):
    with pytest.raises(InvalidRequestError, match=message) as error:
        Workflow.from_dict(data)
    assert error.value.param == param


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), 10**400, True, "0.5", [0.5]])
def test_a_probability_is_a_number_in_its_bounds(value):
    edge = {"source": "a", "target": "b", "probability": value}
    with pytest.raises(InvalidRequestError, match=r"a number in \[0, 1\]") as error:
        Workflow.from_dict({"edges": [edge]})
    assert error.value.param == "edges[0].probability"
    with pytest.raises(InvalidRequestError, match=r"a number in \[0, 1\]") as error:
        Workflow().edge("a", "b", probability=value)
    assert error.value.param == "probability"


@pytest.mark.parametrize("value", [1, "true", []])
def test_conditional_is_true_or_false(value):
    edge = {"source": "a", "target": "b", "conditional": value}
    with pytest.raises(InvalidRequestError, match="true or false") as error:
        Workflow.from_dict({"edges": [edge]})
    assert error.value.param == "edges[0].conditional"


@pytest.mark.parametrize(
    ("build", "param"),
    [
        (lambda w: w.agent(""), "name"),
        (lambda w: w.agent(None), "name"),
        (lambda w: w.node("a", agent=LONG), "agent"),
        (lambda w: w.edge(1, "b"), "source"),
        (lambda w: w.edge("b", LONG), "target"),
        (lambda w: w.join("a", "most"), "mode"),
        (lambda w: w.join("", "any"), "target"),
        (lambda w: w.entry(b"a"), "name"),
    ],
)
def test_an_invalid_argument_is_refused_and_changes_nothing(build, param):
    workflow = Workflow()
    with pytest.raises(InvalidRequestError) as error:
        build(workflow)
    assert error.value.param == param
    assert not workflow.nodes


def test_the_size_of_a_workflow_is_bounded_and_the_largest_one_runs():
    workflow = chain(*(f"n{i}" for i in range(MAX_NODES)))
    with pytest.raises(InvalidRequestError, match="at most 4096 nodes"):
        workflow.agent("one more")
    skips = ((i, i + far) for far in range(2, MAX_NODES) for i in range(MAX_NODES - far))
    for source, target in islice(skips, MAX_EDGES - len(workflow.edges)):
        workflow.edge(f"n{source}", f"n{target}")
    with pytest.raises(InvalidRequestError, match="at most 16384 edges"):
        workflow.edge(f"n{MAX_NODES - 1}", "n0")
    run = run_of(workflow.edge("n0", "n1"))
    assert run.steps() == tuple(range(MAX_NODES))
    assert play(run, "n0").steps()[1:] == tuple(range(MAX_NODES - 1))


@pytest.mark.parametrize(
    ("data", "param"),
    [
        ({"nodes": ["a"] * (MAX_NODES + 1)}, "nodes"),
        ({"entries": ["a"] * (MAX_NODES + 1)}, "entries"),
        ({"joins": [{"target": "a"}] * (MAX_NODES + 1)}, "joins"),
        ({"edges": [{"source": "a", "target": "b"}] * (MAX_EDGES + 1)}, "edges"),
        (
            {"joins": [{"target": "a", "sources": ["b"] * (MAX_EDGES // 2 + 1)}] * 2},
            "joins[1].sources",
        ),
    ],
)
def test_a_form_that_repeats_itself_is_bounded_like_what_it_declares(data, param):
    with pytest.raises(InvalidRequestError, match="at most") as error:
        Workflow.from_dict(data)
    assert error.value.param == param


def test_the_repr_of_a_workflow_lists_its_edges():
    workflow = Workflow("x").edge("a", "b").edge("b", "a", probability=0.5)
    assert repr(workflow) == "Workflow('x', 2 nodes: a -> b, b -> a)"
    assert repr(Workflow()) == "Workflow('', 0 nodes: no edges)"
