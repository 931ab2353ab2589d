"""Loads: which block waits for which, and what becomes of prefetched blocks."""

import numpy as np

from kvflow_jax.cache.host_tier import Extent
from kvflow_jax.cache.loads import Loads


def ids(*blocks):
    return np.array(blocks, np.int32)


def planned(is_prefetch=False):
    loads = Loads()
    loads.plan(Extent(0, ids(1, 2, 3)), ids(1, 2, 3), is_prefetch=is_prefetch)
    return loads, loads.planned[0]


def test_planned_loads_are_drained_once_without_cancelled_ones():
    loads, load = planned()
    loads.plan(Extent(1, ids(7)), ids(7), is_prefetch=False)
    cancelled = loads.planned[1]
    assert loads.end(cancelled, [7])
    assert loads.drain_planned() == [load]
    assert loads.drain_planned() == []
    assert loads.running() == [load]


def test_a_load_ends_with_its_last_block():
    loads, load = planned()
    assert loads.wanted(load) == [1, 2, 3]
    assert not loads.end(load, [])
    assert not loads.end(load, [3])
    assert loads.wanted(load) == [1, 2]
    assert loads
    assert loads.end(load, [1, 2])
    assert not loads
    assert load.num_wanted == 0


def test_prefetched_blocks_are_counted_once_as_useful_late_or_wasted():
    loads, load = planned(is_prefetch=True)
    loads.on_lease(ids(1))  # still loading
    loads.end(load, [1, 2, 3])
    loads.on_lease(ids(1, 2))
    loads.on_drop([3, 2])
    loads.on_drop([3])
    counters = loads.counters
    assert counters.num_prefetched == 3
    assert (counters.num_late, counters.num_useful, counters.num_wasted) == (1, 1, 1)


def test_blocks_loaded_for_a_request_are_no_prefetch():
    loads, load = planned()
    loads.end(load, [1, 2, 3])
    loads.on_lease(ids(1))
    loads.on_drop([2])
    counters = loads.counters
    assert counters.num_prefetched == counters.num_useful == counters.num_wasted == 0
