"""Section 3.1: the Agent Step Graph gives each agent its steps-to-execution.

They are read where they count: at the last block of each agent's fixed prompt in the cache.
"""

import pytest

from kvflow_jax.workflow.workflow import Workflow
from tests.sim.paper.scene import NEVER, UNKNOWN, Scene


def scene_of(graph: Workflow) -> Scene:
    """Return a scene where each agent has called once, in no run: its prompt is cached."""
    scene = Scene(graph=graph)
    for agent in dict.fromkeys(graph.nodes.values()):
        scene.call(agent, (agent, 2))
    return scene


def begin(scene: Scene, agent: str) -> None:
    scene.begin(agent, (agent, 2), run="run")


def call(scene: Scene, agent: str) -> None:
    scene.call(agent, (agent, 2), run="run")


def two_ways() -> Workflow:
    """One step leads from start to a and from there to end, two by way of b and c."""
    graph = Workflow().edge("start", "a").edge("start", "b").edge("b", "c")
    return graph.edge("a", "end").edge("c", "end")


def test_an_agent_in_no_run_has_an_unknown_order() -> None:
    """Without a graph, no order is known."""
    scene = scene_of(two_ways())
    assert scene.steps_of(["start", "end"]) == {"start": UNKNOWN, "end": UNKNOWN}


def test_a_barrier_is_one_step_after_the_last_of_its_predecessors() -> None:
    """A synchronisation barrier (AND) takes the maximum over its predecessors, plus one."""
    scene = scene_of(two_ways().join("end", "all"))
    begin(scene, "start")
    assert scene.steps_of(["start", "a", "b", "c", "end"]) == {
        "start": 0,
        "a": 1,
        "b": 1,
        "c": 2,
        "end": 3,
    }
    scene.settle()
    assert scene.steps_of("abc") == {"a": 0, "b": 0, "c": 1}
    assert scene.steps_of(["end"]) == {"end": 2}
    call(scene, "a")  # a predecessor that has run counts no more
    assert scene.steps_of(["end"]) == {"end": 2}
    call(scene, "b")
    assert scene.steps_of(["c", "end"]) == {"c": 0, "end": 1}
    call(scene, "c")
    assert scene.steps_of(["end"]) == {"end": 0}


def test_alternatives_are_one_step_after_the_first_of_their_predecessors() -> None:
    """A conditional branch (OR) takes the minimum over its predecessors, plus one."""
    scene = scene_of(two_ways().join("end", "any"))
    begin(scene, "start")
    assert scene.steps_of(["c", "end"]) == {"c": 2, "end": 2}
    scene.settle()
    assert scene.steps_of(["c", "end"]) == {"c": 1, "end": 1}
    call(scene, "a")
    assert scene.steps_of(["c", "end"]) == {"c": 1, "end": 0}


def test_barriers_of_unequal_depth_wait_for_the_longest_way() -> None:
    """Barriers behind each other add up, each by its slowest predecessor."""
    graph = Workflow().edge("start", "x").edge("start", "y1").edge("y1", "y2").edge("y2", "y3")
    graph.edge("x", "near").edge("y1", "near").join("near", "all")
    graph.edge("near", "far").edge("y3", "far").join("far", "all")
    scene = scene_of(graph)
    begin(scene, "start")
    assert scene.steps_of(["near", "y3", "far"]) == {"near": 2, "y3": 3, "far": 4}
    scene.settle()
    for agent in ("y1", "y2", "y3"):
        call(scene, agent)
    assert scene.steps_of(["x", "near", "far"]) == {"x": 0, "near": 1, "far": 2}


def review() -> Workflow:
    """The critic sends back to the writer, or on to the publisher."""
    graph = Workflow().edge("writer", "critic")
    graph.edge("critic", "writer", probability=0.5).edge("critic", "publisher", probability=0.5)
    return graph.join("writer", "any").entry("writer")


def test_a_loop_brings_its_agents_nearer_again() -> None:
    """In a loop, an agent's next visit counts, not the one that is over."""
    scene, agents = scene_of(review()), ["writer", "critic", "publisher"]
    for _ in range(2):
        begin(scene, "writer")
        assert scene.steps_of(agents) == {"writer": 0, "critic": 1, "publisher": 2}
        scene.settle()
        assert scene.steps_of(agents) == {"writer": 1, "critic": 0, "publisher": 1}
        begin(scene, "critic")
        assert scene.steps_of(agents) == {"writer": 1, "critic": 0, "publisher": 1}
        scene.settle()
        assert scene.steps_of(agents) == {"writer": 0, "critic": 1, "publisher": 0}


def test_a_branch_that_is_not_taken_never_runs() -> None:
    """What the present state cannot reach has no steps."""
    scene = scene_of(review())
    call(scene, "writer")
    call(scene, "critic")
    begin(scene, "publisher")
    assert scene.steps_of(["writer", "critic"]) == {"writer": NEVER, "critic": NEVER}


@pytest.mark.parametrize("num_first", [1, 3])
def test_a_role_that_is_fanned_out_counts_by_its_soonest_invocation(num_first: int) -> None:
    """Nodes are invocations: the role is as near as the next, its barrier waits for the last."""
    graph = Workflow()
    for i in range(3):
        graph.node(f"worker {i}", "worker")
        graph.edge("planner", f"worker {i}").edge(f"worker {i}", "verifier")
    scene = scene_of(graph.join("verifier", "all"))
    begin(scene, "planner")
    assert scene.steps_of(["worker", "verifier"]) == {"worker": 1, "verifier": 2}
    scene.settle()
    for _ in range(num_first):
        scene.submit("worker", ("worker", 2), run="run")
    scene.settle()
    if num_first < 3:
        assert scene.steps_of(["worker", "verifier"]) == {"worker": 0, "verifier": 1}
        for _ in range(3 - num_first):
            call(scene, "worker")
    assert scene.steps_of(["worker", "verifier"]) == {"worker": NEVER, "verifier": 0}
