"""Next reads compare in the order of reads."""

import numpy as np

from kvflow_jax.cache.next_read import NEVER, RUNNING, SUFFIX, UNKNOWN, scheduled


def test_the_sooner_read_is_less_whatever_its_chance():
    unlikely_branch = scheduled(1.0, chance=0.1, skips_prefetch=True)
    order = [
        RUNNING,
        scheduled(1.0),
        scheduled(1.0, chance=0.5),
        unlikely_branch,
        scheduled(2.0),
        UNKNOWN,
        RUNNING.throttled(),
        scheduled(3.0).throttled(),
        NEVER,
        SUFFIX,
    ]
    assert sorted([*order[5:], *order[:5]]) == order
    rows = np.array(order, np.float64)  # as the block table keeps them
    assert [tuple(row) for row in rows] == order


def test_only_likely_reads_at_a_known_distance_are_prefetched():
    assert RUNNING.is_prefetched
    assert scheduled(1.0, chance=0.5).is_prefetched
    later = scheduled(1.0, skips_prefetch=True)
    assert later.is_scheduled
    assert not later.is_prefetched
    for read in (UNKNOWN, NEVER, SUFFIX, RUNNING.throttled()):
        assert not read.is_scheduled
        assert not read.is_prefetched


def test_an_agent_that_never_runs_again_is_not_throttled():
    assert NEVER.throttled() == NEVER


def test_a_read_without_prefetch_is_as_near_as_with():
    read = scheduled(2.0, chance=0.5)
    assert read.without_prefetch() == scheduled(2.0, chance=0.5, skips_prefetch=True)
    assert read < read.without_prefetch() < scheduled(3.0)
    for other in (UNKNOWN, NEVER, SUFFIX, read.throttled()):
        assert other.without_prefetch() == other
