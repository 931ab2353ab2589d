"""The door to the tiers: plans must be drained, failed transfers cost host copies only."""

import pytest

from kvflow_jax.cache.next_read import UNKNOWN, scheduled
from kvflow_jax.errors import IntegrityError
from tests.cache.tiered_cache import TieredCache, prompt


def host_only(*, num_pages=8, steps=1.0):
    """A cache with the prompt of agent 1 on the host alone, and its node."""
    tiered = TieredCache(num_pages=num_pages, num_host=16, sizes=(1, 2))
    tiered.serve(prompt(1), reader=1, steps=steps)
    tiered.cache.evict(4, 0.0)
    tiered.settle()
    (head,) = tiered.cache.tiers.drain_changed_nodes()
    return tiered, tiered.cache.tiers, head


def test_plans_that_nobody_drains_are_an_error():
    tiered, tiers, head = host_only()
    tiers.check_drained()
    tiers.prefetch(tiers.next_extent(head), scheduled(1.0), 0.0, num_reserved=0)
    with pytest.raises(IntegrityError, match="not drained"):
        tiers.check_drained()
    assert len(tiers.drain_plans().loads) == 1
    tiers.check_drained()
    tiered.cache.check_integrity()


def test_a_path_is_prefetched_extent_by_extent():
    tiered, tiers, head = host_only()
    assert len(tiers.loadable_blocks(head)) == 4
    assert len(tiers.next_extent(head)) == 2
    assert tiers.prefetch(tiers.next_extent(head), scheduled(1.0), 0.0, num_reserved=0)
    assert len(tiers.loading_blocks()) == 2
    tiered.settle()
    assert tiers.prefetch(tiers.next_extent(head), scheduled(1.0), 0.0, num_reserved=0)
    tiered.settle()
    assert len(tiers.next_extent(head)) == 0
    assert tiered.num_resident(prompt(1)) == (4, 4)


def test_a_prefetch_that_does_not_fit_loads_its_first_blocks():
    _, tiers, head = host_only(num_pages=4)
    assert not tiers.prefetch(tiers.next_extent(head), scheduled(1.0), 0.0, num_reserved=3)
    assert len(tiers.loading_blocks()) == 1


def test_prefetches_that_have_become_stale_are_cancelled():
    tiered, tiers, head = host_only()
    tiers.prefetch(tiers.next_extent(head), scheduled(1.0), 0.0, num_reserved=0)
    tiers.cancel_prefetches(lambda read: not read.is_scheduled)
    assert len(tiers.loading_blocks()) == 2
    tiered.cache.set_next_read(1, UNKNOWN)
    assert tiers.next_read_of_node(head) == UNKNOWN
    tiers.cancel_prefetches(lambda read: not read.is_scheduled)
    assert len(tiers.loading_blocks()) == 0
    assert tiers.drain_plans().loads == []
    assert tiers.counters.num_wasted == 2


def test_a_reference_to_a_freed_block_offloads_nothing():
    tiered = TieredCache(num_pages=4, num_host=8)
    lease = tiered.lease([])
    tiered.compute(lease, prompt(1))
    end = tiered.cache.end_of(lease)
    tiered.cache.release(lease, 1.0)
    assert tiered.cache.tiers.offload(end) == 4
    assert tiered.cache.tiers.offload(end) == 0  # nothing is left to do
    tiered.settle()
    tiered.cache.flush(0.0)
    assert tiered.cache.tiers.offload(end) == 0
    assert tiered.cache.end_of(tiered.lease([])) is None


def test_copies_count_once_they_are_written_on_the_device_or_not():
    tiered = TieredCache(num_pages=4, num_host=8)
    tiered.serve(prompt(1), reader=1, steps=1.0)
    tiers, path = tiered.cache.tiers, tiered.path(prompt(1))
    assert tiers.num_copied(path) == 0
    tiered.cache.evict(1, 0.0)
    assert tiers.num_copied(path) == 0  # still being written
    tiered.settle()
    assert tiers.num_copied(path) == 4
    assert tiered.num_resident(prompt(1))[0] == 3


def test_the_offload_budget_bounds_what_is_planned():
    tiered = TieredCache(num_pages=4, num_host=8)
    tiered.serve(prompt(1), reader=1, steps=1.0)
    tiers = tiered.cache.tiers
    tiers.set_offload_budget(3)
    assert tiers.has_offload_budget
    tiered.cache.evict(4, 0.0)
    assert not tiers.has_offload_budget
    assert tiers.num_host_blocks == 3


def test_a_failed_load_loses_its_copies_and_cancels_what_continues_them():
    tiered, tiers, head = host_only()
    for _ in range(2):
        tiers.prefetch(tiers.next_extent(head), scheduled(1.0), 0.0, num_reserved=0)
    first, second = tiers.drain_plans().loads
    tiers.fail_loads([first], [second])
    assert len(tiers.loading_blocks()) == 0
    assert tiers.num_host_blocks == 0
    tiered.cache.check_integrity()
    tiered.serve(prompt(1))  # computed again


def test_a_failed_offload_loses_its_copies():
    tiered = TieredCache(num_pages=4, num_host=8)
    tiered.serve(prompt(1), reader=1, steps=1.0)
    tiered.cache.evict(1, 0.0)
    tiers = tiered.cache.tiers
    for offload in tiers.drain_plans().offloads:
        tiers.fail_offload(offload)
    assert tiers.num_host_blocks == 0
    tiered.cache.check_integrity()
