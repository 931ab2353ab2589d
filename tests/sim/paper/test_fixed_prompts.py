"""Which part of a prompt is fixed: marked by the caller, or inferred as what keeps being hit."""

import itertools

import pytest

from tests.sim.paper.scene import SUFFIX, Scene
from tests.support.step_graphs import chain

LENGTH = 6
TEMPLATES = [("template a", LENGTH), ("template b", LENGTH)]


def marks(*, is_marked: bool) -> dict[str, object]:
    return {} if is_marked else {"num_fixed": None}


def test_fixed_prompts_are_backed_up_on_the_host_and_suffixes_never() -> None:
    """Fixed-prompt nodes are backed up to host memory; suffixes are dropped."""
    graph = chain("a", "b", "a").join("a", "any").entry("a")
    scene = Scene(num_blocks=48, num_host_blocks=200, graph=graph)
    calls = []
    for agent in ("a", "b", "a", "b"):
        calls.append(scene.call(agent, (agent, LENGTH), run="run", num_tokens=64))
        scene.fill(40)
    for agent in ("a", "b"):
        assert scene.on_host((agent, LENGTH)) == LENGTH
    assert [scene.suffix_on_host(call) for call in calls] == [0] * 4
    counters = scene.engine.cache.tiers.counters
    assert counters.num_offloaded == 2 * LENGTH  # each block once, however often it is evicted


@pytest.mark.parametrize("is_marked", [True, False], ids=["marked", "inferred"])
def test_what_follows_the_fixed_prompt_is_no_part_of_it(is_marked: bool) -> None:
    """The boundary is marked by the user, or inferred as the prefix that keeps being hit."""
    scene = Scene()
    for _ in range(2):
        scene.call("a", TEMPLATES[0], hints=marks(is_marked=is_marked))
    assert scene.steps(TEMPLATES[0]) != SUFFIX
    assert scene.steps(TEMPLATES[0], ("suffix 0", 2)) == SUFFIX


@pytest.mark.parametrize("is_marked", [True, False], ids=["marked", "inferred"])
def test_both_templates_of_an_agent_that_alternates_are_kept(is_marked: bool) -> None:
    """What keeps being hit is kept, whether or not the last prompt had it."""
    graph = chain("solver", "critic", "solver").join("solver", "any").entry("solver")
    scene = Scene(num_blocks=40, graph=graph)
    cached = []
    for template in itertools.islice(itertools.cycle(TEMPLATES), 8):
        call = scene.call("solver", template, run="run", hints=marks(is_marked=is_marked))
        cached.append(call.stats.num_cached_tokens)
        scene.call("critic", ("critic", 2), run="run")
        scene.fill(24)
    assert cached[4:] == [16 * LENGTH] * 4
    for template in TEMPLATES:
        assert scene.steps(template) == 0


def test_a_prompt_that_ends_differently_in_each_run_is_kept_for_each() -> None:
    """A role's prompt may end with a ticket: its run reads it again, other runs its beginning."""
    graph = chain("solver", "critic", "solver").join("solver", "any").entry("solver")
    scene = Scene(num_blocks=64, graph=graph)
    role, cached = ("role", 4), []
    for run in itertools.islice(itertools.cycle(["run 1", "run 2"]), 8):
        call = scene.call("solver", role, (f"ticket of {run}", 4), run=run)
        cached.append(call.stats.num_cached_tokens)
        scene.call("critic", ("critic", 2), run=run)
        scene.fill(32)
    assert cached[2:] == [16 * 8] * 6
