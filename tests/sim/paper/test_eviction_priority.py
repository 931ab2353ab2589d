"""Section 3.2: what the steps of agents mean for a node of the cache, and what goes first."""

import pytest

from kvflow_jax.cache.next_read import scheduled
from kvflow_jax.workflow.workflow import Workflow
from tests.sim.paper.scene import NEVER, SUFFIX, UNKNOWN, Scene
from tests.support.step_graphs import chain

BASE = ("base", 4)  # of the prompts of all agents
PROMPTS = {agent: (BASE, (agent, 3)) for agent in ("planner", "coder", "tester")}


def cycle() -> Workflow:
    """Three agents that call one after the other, for ever."""
    return chain("planner", "coder", "tester", "planner").join("planner", "any").entry("planner")


def call(scene: Scene, *agents: str, run: str = "run", tenant: str = "") -> None:
    for agent in agents:
        scene.call(agent, *PROMPTS[agent], run=run, tenant=tenant)


def steps(scene: Scene) -> list[float | str]:
    """Return the steps of the shared part, and of each agent's own."""
    return [scene.steps(BASE), *(scene.steps(*parts) for parts in PROMPTS.values())]


def test_the_last_node_of_a_fixed_prompt_has_the_steps_of_its_agent() -> None:
    """An ancestor takes the minimum over its children."""
    scene = Scene(graph=cycle())
    call(scene, "planner", "coder", "tester")
    assert steps(scene) == [0, 0, 1, 2]
    call(scene, "planner")
    assert steps(scene) == [0, 2, 0, 1]
    scene.begin("coder", *PROMPTS["coder"], run="run")
    assert steps(scene) == [0, 2, 0, 1]


def test_the_prompts_of_a_chain_end_with_it() -> None:
    """What was shared with agents that have run counts for those that are left."""
    scene = Scene(graph=chain(*PROMPTS))
    for agent, parts in PROMPTS.items():
        scene.call(agent, *parts)  # cached, and read in no known order
    scene.begin("planner", *PROMPTS["planner"], run="run")
    assert steps(scene) == [0, 0, 1, 2]
    scene.settle()
    assert steps(scene)[0] == 0
    call(scene, "coder")
    assert steps(scene)[0] == 0
    call(scene, "tester")  # the run is over
    assert steps(scene) == [UNKNOWN] * 4


def test_what_follows_the_fixed_prompt_is_the_dynamic_suffix() -> None:
    """Nodes after the fixed prompt have the highest eviction priority."""
    scene = Scene(graph=cycle())
    first = scene.call("planner", *PROMPTS["planner"], run="run")
    suffix = ("suffix 0", 2)
    assert scene.steps(*PROMPTS["planner"], suffix) == SUFFIX
    assert scene.on_device(*PROMPTS["planner"], suffix) == len(first.names)


def test_victims_are_suffixes_then_the_farthest_agents_and_last_what_is_shared() -> None:
    """Highest value first, from the leaves."""
    scene = Scene(graph=cycle())
    call(scene, "planner", "coder", "tester", "planner")
    assert steps(scene) == [0, 2, 0, 1]
    assert scene.evict_all() == ["suffix", "planner", "tester", "coder", "base"]


def test_the_order_of_victims_follows_the_run() -> None:
    """The same agents in another state of their run are evicted in another order."""
    scene = Scene(graph=cycle())
    call(scene, "planner", "coder", "tester", "planner", "coder")
    assert scene.evict_all() == ["suffix", "coder", "planner", "tester", "base"]


def test_an_unknown_order_comes_after_the_known_and_before_never() -> None:
    """Unknown order: equal priority."""
    graph = Workflow().edge("router", "taken", probability=0.5)
    graph.edge("router", "not taken", probability=0.5).edge("taken", "next").edge("next", "last")
    scene = Scene(graph=graph)
    for agent in ("next", "last", "not taken", "stranger"):
        scene.call(agent, (agent, 2))
    scene.call("router", ("router", 2), run="run")
    scene.begin("taken", ("taken", 2), run="run")
    names = ["taken", "next", "last", "stranger", "not taken"]
    known = {"taken": 0, "next": 1, "last": 2, "stranger": UNKNOWN, "not taken": NEVER}
    assert scene.steps_of(names) == known
    scene.call("stranger", ("stranger", 2))  # used last, which saves no prompt of a known order
    scene.begin("taken", ("taken", 2), run="run")
    order = [name for name in scene.evict_all() if name in ("next", "last", *names[3:])]
    assert order == ["not taken", "stranger", "last", "next"]


@pytest.mark.parametrize("tenant", ["", "other"], ids=["same client", "another client"])
def test_a_node_takes_the_minimum_over_concurrent_workflows(tenant: str) -> None:
    """It moves when another run moves; clients that share tokens share nodes."""
    scene = Scene(graph=cycle())
    call(scene, "planner", "coder", "tester", "planner")
    assert steps(scene) == [0, 2, 0, 1]
    call(scene, "planner", "coder", "tester", "planner", "coder", run="second", tenant=tenant)
    assert steps(scene) == [0, 1, 0, 0]
    call(scene, "tester", run="second", tenant=tenant)
    assert steps(scene) == [0, 0, 0, 1]
    scene.engine.controller.end_run(tenant, "second")
    assert steps(scene) == [0, 2, 0, 1]


def test_agents_of_clients_are_not_the_same_for_having_the_same_name() -> None:
    """Agents are identified by client and agent."""
    scene = Scene(graph=cycle())
    scene.call("planner", ("mine", 3), run="run")
    scene.call("planner", ("theirs", 3), run="run", tenant="other")
    scene.call("coder", ("code", 3), run="run")
    scene.call("tester", ("test", 3), run="run")
    assert scene.next_read(("mine", 3)) == scheduled(0.0)
    assert scene.next_read(("theirs", 3)) == scheduled(2.0)
