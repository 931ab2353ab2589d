"""Warnings of likely mistakes in a step graph that can be run."""

from kvflow_jax.workflow.graph_warnings import MAX_WARNINGS, warnings_of
from kvflow_jax.workflow.workflow import Workflow


def test_likely_mistakes_are_named():
    data = {
        "nodes": ["a", "b"],
        "edges": [
            {"source": "a", "target": "b", "probability": 0.9},
            {"source": "a", "target": "b", "probability": 0.7},
            {"source": "a", "target": "c", "probability": 0.6},
            {"source": "d", "target": "e"},
            {"source": "e", "target": "d"},
        ],
        "entry": ["a"],
    }
    workflow = Workflow.from_dict(data)
    assert warnings_of(data, workflow, workflow.freeze()) == [
        'unknown field "entry"',
        '"c" is not among nodes, and was added to them',
        '"d" is not among nodes, and was added to them',
        '"e" is not among nodes, and was added to them',
        'the edge ["a", "b"] occurs 2 times: the last one counts',
        'the probabilities of the choices of "a" sum to 1.3',
        '"d" can never run: not all of its inputs can be satisfied',
        '"e" can never run: not all of its inputs can be satisfied',
    ]


def test_a_cycle_without_an_entry_names_the_node_where_runs_begin():
    ring = Workflow().edge("a", "b").edge("b", "a")
    assert warnings_of(ring.to_dict(), ring, ring.freeze()) == [
        'every node has inputs, and no entry is declared: runs begin at "a"'
    ]


def test_a_graph_without_mistakes_has_no_warnings():
    fine = Workflow("x").edge("a", "b").edge("b", "a", probability=0.5).entry("a")
    assert warnings_of(fine.to_dict(), fine, fine.freeze()) == []


def test_the_number_of_warnings_is_bounded():
    data = {"nodes": ["a"], **{f"unknown-{i}": 1 for i in range(3 * MAX_WARNINGS)}}
    workflow = Workflow.from_dict(data)
    assert len(warnings_of(data, workflow, workflow.freeze())) == MAX_WARNINGS
