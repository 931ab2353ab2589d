"""Section 3.3: the scheduler knows which nodes are on their way."""

from tests.sim.paper.scene import Scene

LENGTH = 8
SLOW_LINK = 0.2e9  # bytes/s: 8 blocks take 84 ms, longer than a short prompt


def scene_with_a_prompt_on_the_host() -> Scene:
    scene = Scene(num_blocks=64, num_host_blocks=200, link_bytes_per_s=SLOW_LINK)
    scene.call("far", ("far", LENGTH))
    scene.fill(64)
    assert scene.on_device(("far", LENGTH)) == 0
    assert scene.on_host(("far", LENGTH)) == LENGTH
    return scene


def test_a_request_whose_prompt_is_loading_is_passed_over() -> None:
    """A request whose node is loading is passed over for one that is ready."""
    scene = scene_with_a_prompt_on_the_host()
    waits = scene.submit("far", ("far", LENGTH))
    ready = scene.submit("near", ("near", 2), num_tokens=2)
    while not ready.is_done:
        assert scene.simulation.step()
    assert not waits.has_begun
    assert scene.engine.cache.tiers.loading_blocks().size == LENGTH
    scene.settle()
    assert waits.stats.num_cached_host_tokens == 16 * LENGTH


def test_two_requests_for_a_loading_prompt_cause_one_load() -> None:
    """A loading node is not loaded twice."""
    scene = scene_with_a_prompt_on_the_host()
    calls = [scene.submit("far", ("far", LENGTH)) for _ in range(2)]
    scene.settle()
    assert scene.engine.cache.tiers.counters.num_loaded == LENGTH
    assert [call.stats.num_cached_tokens for call in calls] == [16 * LENGTH] * 2


def test_a_prompt_that_is_being_offloaded_is_not_offloaded_again() -> None:
    """An offloading node is not evicted twice."""
    scene = Scene(num_blocks=64, num_host_blocks=200, link_bytes_per_s=SLOW_LINK)
    scene.call("far", ("far", LENGTH))
    for _ in range(3):
        scene.fill(64)
        scene.call("far", ("far", LENGTH))
    assert scene.engine.cache.tiers.counters.num_offloaded == LENGTH
    assert scene.engine.cache.tiers.counters.num_loaded == 3 * LENGTH
