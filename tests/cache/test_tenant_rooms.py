"""What a tenant may have evicted of others, and what stays."""

import numpy as np

from kvflow_jax.cache.index import RootKey
from kvflow_jax.cache.next_read import scheduled
from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.cache.tenant_rooms import ACTIVE_S
from tests.cache.tiered_cache import PAGE as TIERED_PAGE
from tests.cache.tiered_cache import TieredCache

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


def offload(tiers, tenant, numbers, steps=1.0):
    """Serve prompts of a tenant, each with a reader of its own; evict each to the host."""
    for number in numbers:
        tiers.serve(four_blocks(number), (tenant, number), steps, tenant=tenant)
        tiers.cache.evict(4, tiers.now)
        tiers.settle()
        tiers.cache.check_integrity()


def num_on_host(tiers, tenant, numbers):
    paths = [tiers.path(four_blocks(number), tenant) for number in numbers]
    return sum(tiers.residency.num_on_host(path) for path in paths)


def test_offloads_of_another_tenant_drop_no_copies_within_a_room():
    tiers = TieredCache(num_pages=64, num_host=16)
    offload(tiers, "small", [1, 2], steps=9.0)
    offload(tiers, "crowd", range(10, 20))  # all needed sooner
    assert num_on_host(tiers, "small", [1, 2]) == 8
    assert num_on_host(tiers, "crowd", range(10, 20)) == 8


def test_copies_beyond_a_room_give_way_whatever_their_tenant_says_of_them():
    tiers = TieredCache(num_pages=64, num_host=16)
    offload(tiers, "first", range(4), steps=0.0)
    assert num_on_host(tiers, "first", range(4)) == 16
    offload(tiers, "second", range(10, 14), steps=9.0)
    assert num_on_host(tiers, "first", range(4)) == 8
    assert num_on_host(tiers, "second", range(10, 14)) == 8


def test_beyond_their_rooms_the_policy_decides_about_copies():
    tiers = TieredCache(num_pages=64, num_host=16)
    offload(tiers, "idle", [1], steps=1.0)
    offload(tiers, "first", range(10, 13), steps=9.0)
    offload(tiers, "second", [20, 21], steps=5.0)
    offload(tiers, "first", [13], steps=1.0)  # in place of its own that are needed later
    assert num_on_host(tiers, "idle", [1]) == 4
    assert num_on_host(tiers, "second", [20, 21]) == 4
    assert num_on_host(tiers, "first", [13]) == 4
    offload(tiers, "first", [14], steps=20.0)
    assert num_on_host(tiers, "first", [14]) == 0


def test_a_prefetch_evicts_nothing_within_the_room_of_another():
    tiers = TieredCache(num_pages=8, num_host=16)
    offload(tiers, "a", [1], steps=0.0)
    tiers.serve(four_blocks(2), tenant="b")
    tiers.serve(four_blocks(3), tenant="a")
    head = int(tiers.path(four_blocks(1), "a")[0])
    blocks = tiers.cache.tiers.next_extent(head)
    assert tiers.cache.tiers.prefetch(blocks, scheduled(0.0), tiers.now, num_reserved=0)
    assert tiers.num_resident(four_blocks(2), "b")[0] == 4
    assert tiers.num_resident(four_blocks(3), "a")[0] == 0
    tiers.cache.check_integrity()


def test_a_prefetch_of_another_within_its_room_is_not_cancelled():
    tiers = TieredCache(num_pages=8, num_host=16)
    offload(tiers, "b", [2])
    tiers.serve(four_blocks(1), tenant="a")
    tiers.residency.load(tiers.path(four_blocks(2), "b"), tiers.now, is_prefetch=True)
    tiers.dispatch()
    assert tiers.residency.num_available_to("a") == 4
    lease = tiers.lease(four_blocks(7), "a")
    assert tiers.compute(lease, four_blocks(7))
    assert len(tiers.cache.tiers.loading_blocks()) == 4
    assert not tiers.cache.grow(lease, 1, tiers.now)
    tiers.cache.check_integrity()


def four_blocks(number):
    return [number] * 4 * TIERED_PAGE
