"""Device and host tier together: a block reads as it was written, whatever was moved meanwhile."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kvflow_jax.cache.next_read import NEVER, UNKNOWN, scheduled
from kvflow_jax.cache.policy import kvflow, lru
from kvflow_jax.cache.prefix_cache import every_block, has_reader
from kvflow_jax.errors import IntegrityError
from tests.cache.tiered_cache import PAGE, ROOT, TieredCache, node_of, prompt, read_in, root_of


def test_an_evicted_prefix_is_offloaded_and_loaded_on_the_next_request():
    tiers = TieredCache(num_pages=4)
    tiers.serve(prompt(1), reader="a", steps=3)
    tiers.serve(prompt(2))  # evicts the first
    tiers.settle()
    assert tiers.num_resident(prompt(1)) == (0, 4)
    lease = tiers.lease(prompt(1))
    assert tiers.cache.num_loading(lease)
    tiers.settle()
    assert not tiers.cache.num_loading(lease)
    tiers.check(lease, prompt(1))
    assert tiers.num_resident(prompt(1)) == (4, 4)
    tiers.cache.check_integrity()


def test_a_copy_is_not_loaded_before_the_copy_that_it_continues_is_written():
    tiers = TieredCache(num_pages=3, sizes=(1,), should_offload=every_block)
    lease = tiers.lease(prompt(1, 6))
    assert tiers.compute(lease, prompt(1, 6))
    tiers.cache.release(lease, tiers.now)
    tiers.residency.evict(2, 0.0)
    tiers.dispatch()
    assert len(tiers.offloads) == 3
    tiers.residency.complete_offload(*tiers.offloads.pop())  # the last of the three
    assert tiers.num_usable(prompt(1, 6)) == 1  # the block that is on the device
    tiers.settle()
    assert tiers.num_usable(prompt(1, 6)) == 3


def test_a_suffix_is_evicted_before_a_prefix_and_a_far_agent_before_a_near_one():
    tiers = TieredCache(num_pages=12, num_host=0)
    tiers.serve(prompt(1), reader="near", steps=1)
    tiers.serve(prompt(2), reader="far", steps=5)
    tiers.serve(prompt(3))  # without a reader, and used last
    tiers.residency.evict(4, 0.0)
    assert [tiers.num_resident(prompt(i))[0] for i in (1, 2, 3)] == [4, 4, 0]
    tiers.residency.evict(1, 0.0)
    assert [tiers.num_resident(prompt(i))[0] for i in (1, 2)] == [4, 3]  # the tail alone
    tiers.cache.set_next_read("far", scheduled(0.0))
    tiers.residency.evict(2, 0.0)
    assert [tiers.num_resident(prompt(i))[0] for i in (1, 2)] == [2, 3]
    tiers.cache.check_integrity()


def test_readers_of_unknown_order_are_evicted_by_lru_after_dead_and_before_known_ones():
    tiers = TieredCache(num_pages=16, num_host=0)
    tiers.serve(prompt(1), reader="dead", steps=NEVER)
    tiers.serve(prompt(2), reader="old", steps=UNKNOWN)
    tiers.serve(prompt(3), reader="new", steps=UNKNOWN)
    tiers.serve(prompt(4), reader="known", steps=9)
    evicted = []
    for _ in range(4):
        tiers.residency.evict(4, 0.0)
        evicted.append([i for i in (1, 2, 3, 4) if tiers.num_resident(prompt(i))[0] == 0])
    assert evicted == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]


def test_the_host_tier_keeps_the_copies_that_are_needed_sooner():
    tiers = TieredCache(num_pages=4, num_host=8, sizes=(1, 2))
    for agent, steps in ((1, 1), (2, 9), (3, 2), (4, 8)):
        tiers.serve(prompt(agent), reader=agent, steps=steps)
        tiers.settle()
    # Agent 4 is on the device; of the others, the two needed soonest have host copies.
    assert [tiers.num_resident(prompt(i))[1] for i in (1, 2, 3, 4)] == [4, 0, 4, 4]
    tiers.cache.check_integrity()


def test_an_early_offload_makes_eviction_free():
    tiers = TieredCache(num_pages=4)
    tiers.serve(prompt(1), reader="a", steps=3)
    end = tiers.path(prompt(1))[-1]
    assert tiers.residency.offload(int(end)) == 4
    assert tiers.residency.offload(int(end)) == 0  # nothing is copied twice
    tiers.settle()
    tiers.residency.evict(4, 0.0)
    assert not tiers.cache.tiers.planned_offloads
    assert tiers.num_resident(prompt(1)) == (0, 4)


def test_a_lost_extent_is_recomputed():
    tiers = TieredCache(num_pages=4)
    tiers.serve(prompt(1), reader="a", steps=3)
    tiers.serve(prompt(2), reader="b", steps=1)
    tiers.settle()
    first = min(tiers.residency.host.extents)
    tiers.residency.drop_lost_extent(tiers.residency.host.extents[first])
    tiers.cache.check_integrity()
    assert tiers.num_resident(prompt(1)) == (0, 0)
    tiers.serve(prompt(1))


def test_a_request_that_needs_room_cancels_a_prefetch():
    tiers = TieredCache(num_pages=4)
    tiers.serve(prompt(1), reader="a", steps=1)
    tiers.serve(prompt(2), reader="b", steps=0)
    tiers.settle()
    tiers.residency.evict(4, 0.0)
    tiers.dispatch()
    loadable = tiers.loadable("a")
    tiers.residency.load(loadable, 0.0, is_prefetch=True)
    tiers.dispatch()
    late = tiers.loads[0]
    lease = tiers.lease(prompt(3))
    assert tiers.compute(lease, prompt(3))
    assert tiers.num_resident(prompt(1)) == (0, 4)
    tiers.complete_load(late)  # cancelled: no page is written
    tiers.check(lease, prompt(3))
    tiers.cache.check_integrity()
    assert tiers.cache.tiers.counters.num_wasted == 4


def test_a_recomputed_block_gives_its_page_to_the_host_only_original():
    tiers = TieredCache(num_pages=8)
    tiers.serve(prompt(1), reader="a", steps=1)
    tiers.settle()
    tiers.residency.evict(4, 0.0)
    tiers.settle()
    tokens = np.array(prompt(1), np.int32)
    lease = tiers.cache.lease(ROOT, np.empty(0, np.int32), 9.0)  # a request without a cache hit
    assert tiers.compute(lease, tokens)
    assert lease.num_indexed == 0
    tiers.cache.deduplicate(lease, tokens, 9.0, num_written=4)
    assert lease.num_indexed == 4
    assert tiers.num_resident(prompt(1)) == (4, 4)
    tiers.check(lease, prompt(1))
    tiers.cache.check_integrity()
    tiers.cache.release(lease, 10.0)
    tiers.cache.check_integrity()


def test_a_prefetch_counts_as_useful_late_or_wasted():
    tiers = TieredCache(num_pages=12, num_host=12)
    for agent in (1, 2, 3):
        tiers.serve(prompt(agent), reader=agent, steps=agent)
    tiers.residency.evict(12, 0.0)
    tiers.settle()
    for agent in (1, 2, 3):
        tiers.residency.load(tiers.loadable(agent), 0.0, is_prefetch=True)
    assert len(tiers.residency.loads.running()) == 3
    tiers.dispatch()
    tiers.lease(prompt(2))  # still loading
    tiers.settle()
    tiers.lease(prompt(1))
    tiers.residency.evict(4, 0.0)
    counters = tiers.cache.tiers.counters
    assert counters.num_prefetched == 12
    assert (counters.num_useful, counters.num_late, counters.num_wasted) == (4, 4, 4)
    tiers.cache.check_integrity()


def test_a_cancelled_load_keeps_its_leased_blocks():
    tiers = TieredCache(num_pages=4, sizes=(1, 4))
    tiers.serve(prompt(1), reader="a", steps=1)
    tiers.residency.evict(4, 0.0)
    tiers.settle()
    tiers.residency.load(tiers.path(prompt(1)), 0.0, is_prefetch=True)
    lease = tiers.lease(prompt(1, 4))
    (load,) = tiers.loads
    assert tiers.residency.cancel(load) == 2
    assert load.num_wanted == 2
    tiers.settle()
    assert tiers.num_resident(prompt(1)) == (2, 4)
    tiers.check(lease, prompt(1, 4))
    assert not load.num_wanted
    tiers.cache.check_integrity()


def test_leased_blocks_are_never_evicted():
    tiers = TieredCache(num_pages=4)
    tiers.serve(prompt(1))
    tiers.lease(prompt(1, 4))
    with pytest.raises(IntegrityError, match="1 too few are evictable"):
        tiers.residency.evict(3, 0.0)
    assert tiers.num_resident(prompt(1)) == (2, 2)
    assert tiers.residency.next_victim() is None
    tiers.cache.check_integrity()


def test_eviction_for_a_prefetch_stops_at_a_block_that_is_needed_sooner():
    tiers = TieredCache(num_pages=8)
    tiers.serve(prompt(1), reader="near", steps=1)
    tiers.serve(prompt(2), reader="far", steps=5)
    tiers.residency.evict_while(
        8, lambda block: tiers.cache.next_read_of(block) > scheduled(3.0), 0.0, 0
    )
    assert [tiers.num_resident(prompt(i))[0] for i in (1, 2)] == [4, 0]


def test_no_offload_begins_beyond_the_budget():
    tiers = TieredCache(num_pages=4, sizes=(1,))
    tiers.serve(prompt(1), reader="a", steps=1)
    tiers.residency.offload_budget = 3
    end = int(tiers.path(prompt(1))[-1])
    assert tiers.residency.offload(end, max_blocks=2) == 2
    assert tiers.residency.offload(end) == 1
    assert tiers.residency.offload(end) == 0
    tiers.settle()
    assert tiers.residency.num_on_host(tiers.path(prompt(1))) == 3


def test_a_flush_keeps_leased_blocks_only():
    tiers = TieredCache(num_pages=8)
    tiers.serve(prompt(1), reader="a", steps=1)
    tiers.serve(prompt(2), reader="b", steps=2)
    tiers.residency.evict(4, 0.0)
    tiers.settle()
    lease = tiers.lease(prompt(1, 4))
    assert tiers.cache.flush(0.0) == 6
    assert tiers.num_resident(prompt(1)) == (2, 2)
    assert tiers.num_resident(prompt(2)) == (0, 0)
    tiers.check(lease, prompt(1, 4))
    tiers.cache.check_integrity()


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (
            lambda residency: setattr(residency._queue, "num_idle", 0),
            "4 blocks are idle, 0 are counted",
        ),
        (lambda residency: residency._queue._queues.top()[2].pop(), "queued leaves"),
        (lambda residency: residency.loads._load_of.update({0: None}), "LOADING"),
    ],
)
def test_the_integrity_check_finds_wrong_counts(corrupt, message):
    tiers = TieredCache(num_pages=4)
    tiers.serve(prompt(1))
    corrupt(tiers.residency)
    with pytest.raises(IntegrityError, match=message):
        tiers.residency.check_integrity()


class Interleavings(RuleBasedStateMachine):
    """Requests, transfers and readers in any order, in tiers too small for them."""

    live = Bundle("live")
    tenants = ("",)
    order, should_offload = staticmethod(kvflow), staticmethod(has_reader)

    def __init__(self):
        super().__init__()
        self.tiers = TieredCache(10, 7, self.order, self.should_offload)

    @rule(
        target=live,
        tokens=st.lists(st.integers(0, 1), min_size=2, max_size=12),
        which=st.integers(0, 9),
    )
    def arrive(self, tokens, which):
        tokens = tokens[: len(tokens) // PAGE * PAGE]
        lease = self.tiers.lease(tokens, self.tenants[which % len(self.tenants)])
        return {"tokens": tokens, "lease": lease}

    @rule(request=live, pages=st.integers(1, 3))
    def compute(self, request, pages):
        tiers, lease = self.tiers, request["lease"]
        if lease is None or tiers.cache.num_loading(lease):
            return
        tokens = np.array(request["tokens"], np.int32)
        tiers.cache.deduplicate(lease, tokens, tiers.now, num_written=len(lease))
        if not tiers.cache.num_loading(lease):
            tiers.compute(lease, request["tokens"][: (len(lease) + pages) * PAGE])
        tiers.check(lease, request["tokens"])

    @rule(request=consumes(live))
    def finish(self, request):
        if request["lease"] is not None:
            self.tiers.now += 1
            self.tiers.check(request["lease"], request["tokens"])
            self.tiers.cache.release(request["lease"], self.tiers.now)

    @rule(
        reader=st.integers(0, 4),
        tokens=st.lists(st.integers(0, 1), min_size=2, max_size=12),
        steps=st.sampled_from([0.0, 1.0, 2.0, UNKNOWN, NEVER]),
    )
    def set_reader(self, reader, tokens, steps):
        root = root_of(self.tenants[reader % len(self.tenants)])
        self.tiers.cache.set_reader(reader, root, np.array(tokens, np.int32), read_in(steps))

    @rule(reader=st.integers(0, 4), steps=st.sampled_from([0.0, 1.0, 3.0, NEVER]))
    def set_next_read(self, reader, steps):
        self.tiers.cache.set_next_read(reader, read_in(steps))

    @rule(reader=st.integers(0, 4))
    def remove_reader(self, reader):
        self.tiers.cache.remove_reader(reader)

    @rule(reader=st.integers(0, 4), max_blocks=st.integers(1, 6))
    def offload(self, reader, max_blocks):
        head = node_of(self.tiers.cache, reader)
        if head is not None:
            end = int(self.tiers.cache._nodes.blocks_of(head)[-1])
            if self.tiers.cache._table.page[end] >= 0:
                self.tiers.residency.offload(end, max_blocks=max_blocks)
                self.tiers.dispatch()

    @rule(reader=st.integers(0, 4), max_blocks=st.integers(1, 6))
    def prefetch(self, reader, max_blocks):
        if node_of(self.tiers.cache, reader) is not None:
            loadable = self.tiers.loadable(reader)[:max_blocks]
            if 0 < len(loadable) <= self.tiers.cache._table.num_free_pages:
                self.tiers.residency.load(loadable, 0.0, is_prefetch=True)
                self.tiers.dispatch()

    @rule(which=st.integers(0, 9))
    def complete_load(self, which):
        if self.tiers.loads:
            self.tiers.complete_load(self.tiers.loads.pop(which % len(self.tiers.loads)))

    @rule(which=st.integers(0, 9))
    def cancel(self, which):
        if self.tiers.loads:
            self.tiers.residency.cancel(self.tiers.loads[which % len(self.tiers.loads)])

    @rule(which=st.integers(0, 9))
    def complete_offload(self, which):
        if self.tiers.offloads:
            self.tiers.residency.complete_offload(
                *self.tiers.offloads.pop(which % len(self.tiers.offloads))
            )

    @rule(which=st.integers(0, 9))
    def fail_offload(self, which):
        if self.tiers.offloads and not self.tiers.residency.loads:
            extent, _ = self.tiers.offloads.pop(which % len(self.tiers.offloads))
            self.tiers.residency.drop_lost_extent(extent)

    @rule(count=st.integers(1, 4))
    def evict(self, count):
        cache = self.tiers.cache
        cache._residency.evict(min(count, cache.num_available - cache._table.num_free_pages), 0.0)
        self.tiers.dispatch()

    @rule()
    def flush(self):
        if not self.tiers.cache._leases:
            self.tiers.cache.flush(0.0)
            assert self.tiers.cache.num_indexed == 0

    @invariant()
    def integrity_holds(self):
        self.tiers.cache.check_integrity()


class LruInterleavings(Interleavings):
    order, should_offload = staticmethod(lru), staticmethod(every_block)


class TenantInterleavings(LruInterleavings):
    tenants = ("a", "b", "c")


for machine in (Interleavings, LruInterleavings, TenantInterleavings):
    machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestInterleavings = Interleavings.TestCase
TestLruInterleavings = LruInterleavings.TestCase
TestTenantInterleavings = TenantInterleavings.TestCase
