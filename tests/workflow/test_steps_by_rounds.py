"""Steps-to-execution against brute force: simulate rounds until each node could first run."""

import random

import pytest

from kvflow_jax.workflow.step_graph import NEVER
from kvflow_jax.workflow.workflow import Workflow
from tests.support.step_graphs import by_node, chances, run_of


class SlowRun:
    """An independent implementation over sets of names, with steps found by simulating rounds."""

    def __init__(self, workflow):
        self.agent_of = dict(workflow.nodes)
        self.edges = {(edge.source, edge.target): edge for edge in workflow.edges}
        self.any = {node for node, mode in workflow.joins.items() if mode == "any"}
        self.running = []
        self.granted = set(workflow.entries)
        self.arrived = set()

    def can_run(self, node, arrived):
        inputs = [edge for edge in self.edges if edge[1] == node]
        if node in self.any:
            return any(edge in arrived for edge in inputs)
        return inputs != [] and all(edge in arrived for edge in inputs)

    def is_ready(self, node):
        return node in self.granted or self.can_run(node, self.arrived)

    def start(self, agent):
        steps = self.steps()
        node = min(
            (node for node in self.agent_of if self.agent_of[node] == agent),
            key=lambda node: (not self.is_ready(node), steps[node]),
        )
        chosen_by = {
            source
            for (source, target), edge in self.edges.items()
            if target == node and edge.conditional and (source, target) in self.arrived
        }
        self.arrived = {
            (source, target)
            for source, target in self.arrived
            if target != node
            and not (source in chosen_by and self.edges[source, target].conditional)
        }
        self.granted.discard(node)
        self.running.append(node)

    def stop(self, agent):
        node = next(node for node in self.running if self.agent_of[node] == agent)
        self.running.remove(node)
        return node

    def finish(self, agent):
        node = self.stop(agent)
        self.arrived |= {edge for edge in self.edges if edge[0] == node}

    def abandon(self, agent):
        self.granted.add(self.stop(agent))

    def steps(self):
        """In each round every node that can run does, and is done at the end of the round."""
        first = {node: 0 for node in self.agent_of if node in self.running or self.is_ready(node)}
        arrived, this_round = set(self.arrived), 0
        while True:
            this_round += 1
            arrived |= {edge for edge in self.edges if edge[0] in first}
            new = [n for n in self.agent_of if n not in first and self.can_run(n, arrived)]
            if not new:
                return {node: first.get(node, NEVER) for node in self.agent_of}
            first.update(dict.fromkeys(new, this_round))


def random_workflow(rng):
    nodes = "abcdefg"[: rng.randint(1, 7)]
    workflow = Workflow()
    for node in nodes:
        workflow.node(node, agent=rng.choice(nodes) if rng.random() < 0.2 else None)
        workflow.join(node, rng.choice(["all", "all", "all", "any"]))
    for _ in range(rng.randint(0, 2 * len(nodes))):
        workflow.edge(rng.choice(nodes), rng.choice(nodes), conditional=rng.random() < 0.4)
    for node in nodes:
        if rng.random() < 0.1:
            workflow.entry(node)
    return workflow


@pytest.mark.parametrize("seed", range(10))
def test_steps_are_the_rounds_in_which_nodes_could_first_run(seed):
    rng = random.Random(seed)
    seen = set()
    for _ in range(300):
        workflow = random_workflow(rng)
        run, slow = run_of(workflow), SlowRun(workflow)
        for _ in range(12):
            steps = slow.steps()
            assert by_node(run) == steps
            assert [run.graph.names[node] for node in run.running] == slow.running
            assert {run.graph.names[node] for node in run.ready} == {
                node for node in slow.agent_of if slow.is_ready(node)
            }
            run.check_integrity()
            assert run.is_over == (min(steps.values()) == NEVER)
            assert all(0 <= chance <= 1 for chance in run.probabilities().values())
            assert set(chances(run)) == {node for node, far in steps.items() if far <= 1}
            seen.update(steps.values())
            move(rng, run, slow)
    assert {0, 1, 2, 3, NEVER} <= seen


def move(rng, run, slow):
    """Make the same random move in both; most starts are of ready nodes."""
    due = [slow.agent_of[node] for node in slow.agent_of if slow.is_ready(node)]
    if slow.running and rng.random() < 0.5:
        agent = slow.agent_of[rng.choice(slow.running)]
        method = "abandon" if rng.random() < 0.2 else "finish"
    else:
        agents = due if due and rng.random() < 0.8 else list(slow.agent_of.values())
        agent, method = rng.choice(agents), "start"
    getattr(slow, method)(agent)
    assert getattr(run, method)(agent)
