"""The times that blocks stay on the device and are idle, by the clock that the cache is given."""

import numpy as np
import pytest

from kvflow_jax.cache.block_ages import AGE_BOUNDS_S, NO_AGES, AgeHistogram, BlockAges
from kvflow_jax.cache.prefix_cache import PrefixCache
from tests.cache.tiered_cache import ROOT, TieredCache, ids


def times_of(histogram):
    """The upper bounds of the times of a histogram, with their numbers."""
    bounds = [*AGE_BOUNDS_S, np.inf]
    return {b: n for b, n in zip(bounds, histogram.counts, strict=True) if n}


def fill(cache, tokens, start, end):
    """Compute a sequence from ``start`` to ``end``."""
    lease = cache.lease(ROOT, cache.match(ROOT, tokens), start)
    assert cache.grow(lease, len(tokens) // cache.page_size - len(lease), start)
    cache.publish(lease, tokens)
    cache.release(lease, end)


def test_evicted_blocks_were_on_the_device_since_they_were_computed_and_idle_since_their_release():
    cache = PrefixCache(4, 2)
    fill(cache, ids(1, 1, 1, 1), 10.0, 13.0)
    fill(cache, ids(2, 2), 14.0, 15.0)
    assert cache.tiers.ages == NO_AGES
    cache.evict(2, 17.5)
    ages = cache.tiers.ages
    assert times_of(ages.lifetime) == {10.0: 2}
    assert times_of(ages.idle_before_evict) == {5.0: 2}
    assert ages.lifetime.sum_s == pytest.approx(2 * 7.5)
    assert ages.idle_before_evict.sum_s == pytest.approx(2 * 4.5)
    assert ages.reuse_gap == AgeHistogram()


def test_a_request_that_finds_blocks_ends_their_gap():
    cache = PrefixCache(4, 2)
    fill(cache, ids(1, 1, 1, 1), 1.0, 2.0)
    for start in (2.25, 5.0):
        fill(cache, ids(1, 1, 1, 1), start, start)
    ages = cache.tiers.ages
    assert times_of(ages.reuse_gap) == {0.5: 2, 5.0: 2}
    assert ages.reuse_gap.sum_s == pytest.approx(2 * (0.25 + 2.75))
    assert cache.tiers.ages is not NO_AGES
    assert cache.tiers.ages == ages


def test_a_loaded_block_lives_from_its_load():
    tiers = TieredCache(num_pages=4)
    cache = tiers.cache
    fill(cache, ids(1, 1), 0.0, 0.0)
    block = cache.match(ROOT, ids(1, 1))
    cache._table.born[block] = -1000.0
    tiers.residency.offload(int(block[0]))
    for offload in cache.tiers.drain_plans().offloads:
        tiers.residency.complete_offload(offload.extent, None)
    cache.evict(1, 0.0)
    before = cache.tiers.ages.lifetime
    lease = cache.lease(ROOT, block, 100.0)
    (load,) = cache.tiers.drain_plans().loads
    tiers.residency.complete_load(load)
    cache.release(lease, 101.0)
    cache.evict(1, 103.0)
    assert cache.tiers.ages.lifetime.sum_s - before.sum_s == pytest.approx(3.0)


def test_histograms_add_up():
    one = AgeHistogram().with_ages(np.array([0.001, 0.0011, 5000.0]))
    assert times_of(one) == {0.001: 1, 0.002: 1, np.inf: 1}
    ages = BlockAges(reuse_gap=one)
    assert NO_AGES.plus(ages) == ages
    twice = ages.plus(ages)
    assert times_of(twice.reuse_gap) == {0.001: 2, 0.002: 2, np.inf: 2}
    assert twice.reuse_gap.sum_s == pytest.approx(2 * one.sum_s)
    assert twice.lifetime == AgeHistogram()
