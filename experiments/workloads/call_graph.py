"""The step graph of a trace's run: a node for each of its calls, as the trace orders them."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.workloads.base import Call
from kvflow_jax.workflow.step_graph import Graph
from kvflow_jax.workflow.workflow import MAX_EDGES, MAX_NODES, Workflow


def call_graph(calls: Sequence[Call]) -> Graph | None:
    """Return the graph of the calls of one run; each waits for all calls that it comes after.

    None for a run of one call, and for one with more calls than a graph may have nodes.
    """
    num_edges = sum(len(call.after) for call in calls)
    if len(calls) < 2 or len(calls) > MAX_NODES or num_edges > MAX_EDGES:
        return None
    workflow = Workflow()
    for number, call in enumerate(calls):
        workflow.node(str(number), call.agent)
    for number, call in enumerate(calls):
        for before in call.after:
            workflow.edge(str(before), str(number))
        if len(call.after) > 1:
            workflow.join(str(number), "all")
    return workflow.freeze()
