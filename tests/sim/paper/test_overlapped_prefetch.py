"""Section 3.3: prompts are loaded from the host before their agents ask for them."""

from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.workflow.workflow import Workflow
from tests.sim.paper.scene import UNKNOWN, Scene
from tests.support.step_graphs import chain

LENGTH = 8
AGENTS = [f"agent {i}" for i in range(6)]


def ring() -> Workflow:
    return chain(*AGENTS, AGENTS[0]).join(AGENTS[0], "any").entry(AGENTS[0])


def ring_after_a_round(num_blocks: int, **kwargs) -> Scene:  # type: ignore[no-untyped-def]
    """Return a scene whose pool is too small for the six prompts, all of which the host has."""
    scene = Scene(num_blocks=num_blocks, num_host_blocks=400, graph=ring(), **kwargs)
    for agent in AGENTS:
        scene.call(agent, (agent, LENGTH), run="run")
    for agent in AGENTS:
        assert scene.on_host((agent, LENGTH)) == LENGTH
    return scene


def test_the_next_agent_is_back_on_the_device_before_it_asks() -> None:
    """While step t computes, the fixed prompts of agents that can run at t+1 are loaded."""
    scene = ring_after_a_round(3 * LENGTH + 6)
    for agent in AGENTS:
        assert scene.on_device((agent, LENGTH)) == LENGTH
        call = scene.call(agent, (agent, LENGTH), run="run")
        assert call.stats.num_cached_tokens == 16 * LENGTH
        assert call.stats.num_cached_host_tokens == 0  # it waited for no load


def test_nothing_nearer_is_evicted_for_a_prefetch() -> None:
    """What is loaded takes the place of what is read later, never of what is read sooner."""
    scene = ring_after_a_round(3 * LENGTH + 6)
    for turn in range(2 * len(AGENTS)):
        agent, *others = AGENTS[turn % 6 :] + AGENTS[: turn % 6]
        scene.submit(agent, (agent, LENGTH), run="run")
        least = 0
        while scene.simulation.step():
            # The next agent in the ring is there whole, or on its way, before any behind it.
            here = [scene.on_device((other, LENGTH)) for other in others[:2]]
            assert here[0] >= least
            least = max(least, here[0])
        assert scene.on_device((others[0], LENGTH)) == LENGTH
        assert scene.on_device((others[1], LENGTH)) == LENGTH


def test_without_prefetch_the_next_agent_loads_when_it_asks() -> None:
    """The same ring on a reactive host tier: what the paper compares with."""
    scene = ring_after_a_round(
        3 * LENGTH + 6, cache=CacheConfig(mode="kvflow", guard=False, prefetch=False)
    )
    loaded = [
        scene.call(agent, (agent, LENGTH), run="run").stats.num_cached_host_tokens
        for agent in AGENTS
    ]
    assert sum(loaded) > 0


PROBABILITIES = [0.30, 0.25, 0.20, 0.15, 0.07, 0.03]


def router() -> Workflow:
    """The router sends to one of six branches, which may send back to it."""
    graph = Workflow()
    for agent, probability in zip(AGENTS, PROBABILITIES, strict=True):
        graph.edge("router", agent, probability=probability)
        graph.edge(agent, "router", probability=0.68)
    return graph.join("router", "any").entry("router")


def branches_on_the_host(graph: Workflow, **kwargs) -> Scene:  # type: ignore[no-untyped-def]
    """Return a scene with room for all branches, which a chat has just evicted to the host."""
    scene = Scene(num_blocks=100, num_host_blocks=400, graph=graph, **kwargs)
    for agent in ("router", *AGENTS):
        scene.call(agent, (agent, LENGTH))
    scene.fill(100)
    for agent in ("router", *AGENTS):
        assert scene.on_device((agent, LENGTH)) == 0
        assert scene.on_host((agent, LENGTH)) == LENGTH
    return scene


def test_the_likeliest_branches_are_loaded_up_to_a_cap() -> None:
    """For branches all candidates are prefetched, up to a cap: here the four likeliest."""
    scene = branches_on_the_host(router())
    scene.call("router", ("router", LENGTH), run="run")
    assert [scene.on_device((agent, LENGTH)) for agent in AGENTS] == [LENGTH] * 4 + [0] * 2


def test_the_next_visit_of_the_router_takes_no_place_of_a_branch() -> None:
    """Candidates for step t+1 compete with each other, not with what may run at t+2."""
    scene = branches_on_the_host(router())
    scene.begin("router", ("router", LENGTH), run="run")
    scene.settle()  # the pause in which a tool runs
    reads = [scene.next_read((agent, LENGTH)) for agent in AGENTS]
    assert [read.is_prefetched for read in reads] == [True] * 4 + [False] * 2
    assert scene.steps(("router", LENGTH)) == 1
    assert scene.on_device((AGENTS[3], LENGTH)) == LENGTH


def test_what_has_no_known_order_is_not_prefetched() -> None:
    """Unknown order: no prefetch, however much room there is."""
    scene = branches_on_the_host(router())
    for agent in AGENTS:
        assert scene.steps((agent, LENGTH)) == UNKNOWN
    scene.call("stranger", ("stranger", LENGTH))
    for agent in AGENTS:
        assert scene.on_device((agent, LENGTH)) == 0
    assert scene.engine.cache.tiers.counters.num_prefetched == 0
