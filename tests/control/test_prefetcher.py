"""Offloads and prefetches ahead of time, over a link that takes one second per block."""

import pytest

from kvflow_jax.cache.next_read import UNKNOWN, scheduled
from kvflow_jax.cache.transfer import Direction
from kvflow_jax.control.prefetcher import Prefetcher
from tests.cache.tiered_cache import TieredCache, prompt


class Link:
    """A transfer manager whose link takes one second per block."""

    def __init__(self):
        self.is_up = True
        self.max_planned = 100

    def is_usable(self, direction):
        assert direction is Direction.LOAD
        return self.is_up

    def is_saturated(self, direction, planned):
        return len(planned) >= self.max_planned

    def estimate_s(self, direction, num_blocks):
        return float(num_blocks)


def on_host(*readers, num_pages=8, should_load=None, prefetches=True):
    """A cache with 4 blocks of each (reader, steps) on the host alone, and its prefetcher."""
    tiers = TieredCache(num_pages=num_pages, num_host=16, sizes=(1, 2, 4))
    for agent, steps in readers:
        tiers.serve(prompt(agent), reader=agent, steps=steps)
        tiers.residency.evict(4, 0.0)
        tiers.settle()
    return tiers, Prefetcher(tiers.cache, prefetches=prefetches, should_load=should_load)


def end_of(tiers, agent):
    """The last block of an agent's prompt."""
    return tiers.cache._ref(int(tiers.path(prompt(agent))[-1]))


def resident(tiers, *agents):
    """Plan, complete all transfers, and return the number of blocks on the device per agent."""
    tiers.settle()
    tiers.cache.check_integrity()
    return [tiers.num_resident(prompt(agent))[0] for agent in agents]


def test_the_next_agent_is_prefetched_first():
    tiers, prefetcher = on_host((1, 5.0), (2, 1.0), num_pages=4)
    prefetcher.plan_prefetch(Link(), 0, 0.0)
    assert resident(tiers, 1, 2) == [0, 4]
    assert tiers.cache.tiers.counters.num_prefetched == 4


def test_a_later_agent_is_prefetched_only_once_its_deadline_can_be_met():
    tiers, prefetcher = on_host((1, 5.0))
    prefetcher.plan_prefetch(Link(), 0, 0.0)
    assert resident(tiers, 1) == [0]  # the duration of calls is unknown
    prefetcher.note_call_time(0.5)
    prefetcher.plan_prefetch(Link(), 0, 0.0)
    assert resident(tiers, 1) == [0]  # due in 2.5 s, loaded in 4 s
    for _ in range(20):
        prefetcher.note_call_time(1.0)
    prefetcher.plan_prefetch(Link(), 0, 0.0)
    assert resident(tiers, 1) == [4]


def test_the_cost_model_can_veto_a_prefetch():
    asked = []

    def should_load(*args):
        asked.append(args)
        return False

    tiers, prefetcher = on_host((1, 1.0), should_load=should_load)
    prefetcher.note_call_time(3.0)
    prefetcher.plan_prefetch(Link(), 0, 0.0)
    assert resident(tiers, 1) == [0]
    assert asked == [(4, 8, 3.0)]  # blocks, tokens, seconds to spare


def test_only_blocks_needed_later_are_evicted_for_a_prefetch():
    tiers, prefetcher = on_host((1, 3.0), num_pages=4)
    prefetcher.note_call_time(10.0)
    tiers.serve(prompt(2), reader=2, steps=2.0)
    prefetcher.plan_prefetch(Link(), 0, 0.0)
    assert resident(tiers, 1, 2) == [0, 4]
    tiers.cache.set_next_read(2, scheduled(9.0))
    prefetcher.plan_prefetch(Link(), 0, 0.0)
    assert resident(tiers, 1, 2) == [4, 0]


def test_pages_reserved_for_running_requests_stay_free():
    tiers, prefetcher = on_host((1, 1.0), num_pages=4)
    prefetcher.plan_prefetch(Link(), 3, 0.0)
    assert resident(tiers, 1) == [1]  # a prefix is of use from its start
    assert tiers.cache.num_available - tiers.cache.num_idle == 3


@pytest.mark.parametrize("read", [UNKNOWN, scheduled(1.0, skips_prefetch=True)])
def test_unknown_readers_and_unlikely_branches_are_not_prefetched(read):
    tiers, prefetcher = on_host((1, read))
    prefetcher.plan_prefetch(Link(), 0, 0.0)
    assert resident(tiers, 1) == [0]


def test_a_prefetch_is_cancelled_when_its_run_takes_another_branch():
    tiers, prefetcher = on_host((1, 1.0))
    prefetcher.plan_prefetch(Link(), 0, 0.0)
    assert tiers.residency.loads.running()
    tiers.cache.set_next_read(1, UNKNOWN)
    prefetcher.plan_prefetch(Link(), 0, 0.0)
    assert not tiers.residency.loads.running()
    assert resident(tiers, 1) == [0]


def test_nothing_is_prefetched_over_a_broken_or_a_busy_link_or_if_switched_off():
    link = Link()
    tiers, prefetcher = on_host((1, 1.0))
    link.is_up = False
    prefetcher.plan_prefetch(link, 0, 0.0)
    link.is_up, link.max_planned = True, 0
    prefetcher.plan_prefetch(link, 0, 0.0)
    assert resident(tiers, 1) == [0]
    tiers, prefetcher = on_host((1, 1.0), prefetches=False)
    prefetcher.plan_prefetch(Link(), 0, 0.0)
    assert resident(tiers, 1) == [0]


def test_a_path_is_offloaded_while_the_link_is_idle():
    tiers, prefetcher = on_host()
    link = Link()
    tiers.serve(prompt(1), reader=1, steps=3.0)
    prefetcher.offload_later(end_of(tiers, 1))
    link.max_planned = 0
    prefetcher.plan_offloads(link)
    assert not tiers.cache.tiers.planned_offloads
    link.max_planned = 100
    prefetcher.plan_offloads(link)
    tiers.settle()
    assert tiers.cache.tiers.num_host_blocks == 4
    assert tiers.num_resident(prompt(1)) == (4, 4)  # both tiers have it


def test_a_block_that_was_evicted_before_its_offload_is_skipped():
    tiers, prefetcher = on_host(num_pages=4)
    tiers.serve(prompt(1))  # without a reader: evicted without a copy
    prefetcher.offload_later(end_of(tiers, 1))
    tiers.serve(prompt(2))
    prefetcher.plan_offloads(Link())
    assert not tiers.cache.tiers.planned_offloads
