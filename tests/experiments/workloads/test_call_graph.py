"""The step graph of a trace's calls."""

import numpy as np

from experiments.workloads.base import Call
from experiments.workloads.call_graph import call_graph
from kvflow_jax.workflow.step_graph import RunState
from kvflow_jax.workflow.workflow import MAX_NODES


def calls(*after, agents="abcdefgh"):
    """Calls of agents that come after the numbers that are given."""
    part = np.zeros(4, np.int32)
    return [
        Call(agents[i % len(agents)], (part,), 0, 1, numbers) for i, numbers in enumerate(after)
    ]


def test_a_call_waits_for_all_that_it_comes_after():
    state = RunState(call_graph(calls((), (0,), (0,), (1, 2))))
    assert dict(zip("abcd", state.steps(), strict=True)) == {"a": 0, "b": 1, "c": 1, "d": 2}
    for agent in "ab":
        state.start(agent)
        state.finish(agent)
    assert state.steps()[3] == 1  # c is to come
    for agent in "cd":
        state.start(agent)
        state.finish(agent)
    assert state.is_over


def test_the_turns_of_an_agent_are_one_node_each():
    graph = call_graph(calls((), (0,), (1,), (2,), agents="ab"))
    assert {agent: len(nodes) for agent, nodes in graph.nodes_of.items()} == {"a": 2, "b": 2}


def test_calls_that_begin_together_are_the_entries():
    graph = call_graph(calls((), (), (0, 1)))
    assert graph.entries == {0, 1}


def test_a_run_without_order_or_too_large_has_no_graph():
    assert call_graph(calls(())) is None
    assert call_graph(calls(*[()] * (MAX_NODES + 1))) is None
