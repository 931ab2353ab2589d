"""Short forms for workflows and the states of their runs."""

from itertools import pairwise

from kvflow_jax.workflow.step_graph import RunState
from kvflow_jax.workflow.workflow import Workflow


def chain(*names):
    workflow = Workflow()
    for source, target in pairwise(names):
        workflow.edge(source, target)
    return workflow


def run_of(workflow):
    return RunState(workflow.freeze())


def by_node(run):
    return dict(zip(run.graph.names, run.steps(), strict=True))


def chances(run):
    return {run.graph.names[node]: chance for node, chance in run.probabilities().items()}


def play(run, *agents):
    for agent in agents:
        assert run.start(agent)
        assert run.finish(agent)
    return run
