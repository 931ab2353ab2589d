"""What a tenant may have evicted of others, and what stays."""

import numpy as np

from kvflow_jax.cache.index import RootKey
from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.cache.tenant_rooms import ACTIVE_S

PAGE = 4


def root(tenant):
    return RootKey("model", "", tenant)


def prompt(number, num_blocks):
    return np.full(num_blocks * PAGE, number, np.int32)


def serve(cache, tenant, tokens, now=0.0):
    """Lease, compute and publish a sequence; return the lease, None if there is no room."""
    matched = cache.match(root(tenant), tokens)
    num_missing = len(tokens) // PAGE - len(matched)
    if not cache.has_room(matched, len(tokens) // PAGE, num_reserved=0, tenant=tenant):
        return None
    lease = cache.lease(root(tenant), matched, now)
    assert cache.grow(lease, num_missing, now)
    cache.publish(lease, tokens)
    return lease


def fill(cache, tenant, numbers, num_blocks=2, now=0.0):
    """Serve sequences one after another, and release each."""
    for number in numbers:
        lease = serve(cache, tenant, prompt(number, num_blocks), now)
        assert lease is not None
        cache.release(lease, now)


def num_cached(cache, tenant, numbers, num_blocks=2):
    return sum(len(cache.match(root(tenant), prompt(n, num_blocks))) for n in numbers)


def test_a_crowd_of_another_tenant_evicts_nothing_within_a_room():
    cache = PrefixCache(32, PAGE)
    fill(cache, "small", range(3), now=0.0)
    fill(cache, "crowd", range(10, 60), now=1.0)
    assert num_cached(cache, "small", range(3)) == 6
    cache.check_integrity()


def test_blocks_beyond_a_room_are_anybodys():
    cache = PrefixCache(32, PAGE)
    fill(cache, "first", range(16))
    assert cache.num_idle == 32
    fill(cache, "second", range(20, 40), now=1.0)
    assert num_cached(cache, "first", range(16)) == 16  # half of the pool
    assert num_cached(cache, "second", range(20, 40)) == 16
    cache.check_integrity()


def test_leases_count_against_a_room_and_may_not_take_that_of_others():
    cache = PrefixCache(32, PAGE)
    fill(cache, "small", range(3))
    leases = []
    while (lease := serve(cache, "crowd", prompt(100 + len(leases), 2))) is not None:
        leases.append(lease)
    assert len(leases) == 13  # all but the six blocks of the other
    assert not cache.grow(leases[-1], 1, 0.0)
    assert num_cached(cache, "small", range(3)) == 6
    assert cache.num_missing(np.empty(0, np.int32), 6, num_reserved=0, tenant="small") == 0
    cache.release(leases.pop(), 1.0)
    fill(cache, "small", [7], 8, now=2.0)  # its own, and those of the crowd
    cache.check_integrity()


def test_the_room_of_a_tenant_that_went_away_is_anybodys():
    cache = PrefixCache(32, PAGE)
    fill(cache, "gone", range(8), now=0.0)
    fill(cache, "crowd", range(20, 60), now=ACTIVE_S + 1.0)
    assert num_cached(cache, "gone", range(8)) == 0
    assert num_cached(cache, "crowd", range(20, 60)) == 32
    cache.check_integrity()


def test_within_a_tenant_the_policy_decides():
    cache = PrefixCache(16, PAGE)
    for second, number in enumerate([0, 1, 2, 0]):
        fill(cache, "a", [number], now=float(second))
    fill(cache, "b", range(10, 20), now=4.0)
    assert num_cached(cache, "a", range(3)) == 6
    fill(cache, "a", [3, 4], now=5.0)
    assert num_cached(cache, "a", [0]) == 2
    assert num_cached(cache, "a", [1]) == 0
    cache.check_integrity()
