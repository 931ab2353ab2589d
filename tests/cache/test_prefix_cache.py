"""The prefix cache: leases, publishing, deduplication and eviction, in any interleaving."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kvflow_jax.cache.index import RootKey
from kvflow_jax.cache.next_read import SUFFIX, scheduled
from kvflow_jax.cache.prefix_cache import PrefixCache, every_block
from kvflow_jax.errors import IntegrityError
from tests.cache.tiered_cache import node_of

PAGE = 2
ROOT = RootKey("model")
SOON = scheduled(2.0)


def serve(cache, tokens, now, root=ROOT):
    """Compute all of ``tokens`` at once, as a request; its lease, or None without room for it."""
    tokens = np.asarray(tokens, np.int32)
    lease = cache.lease(root, cache.match(root, tokens), now)
    if not cache.grow(lease, -(-len(tokens) // PAGE) - len(lease), now):
        cache.release(lease, now)
        return None
    cache.publish(lease, tokens)
    return lease


def test_a_released_prefix_stays_cached_and_a_partial_page_does_not():
    cache = PrefixCache(num_pages=8, page_size=PAGE)
    lease = serve(cache, [1, 2, 3, 4, 5], now=0.0)
    assert len(lease) == 3
    assert cache.num_leased == 3
    cache.release(lease, now=1.0)
    assert cache.num_leased == 0
    assert cache.num_indexed == 2
    assert len(cache.match(ROOT, np.array([1, 2, 3, 4, 5], np.int32))) == 2
    cache.check_integrity()
    assert cache.flush(0.0) == 2
    assert cache.num_indexed == 0
    cache.check_integrity()


def test_the_least_recently_used_leaf_is_evicted_first_block_by_block():
    cache = PrefixCache(num_pages=6, page_size=PAGE)
    cache.release(serve(cache, [1, 1, 2, 2, 3, 3], now=0.0), now=1.0)
    cache.release(serve(cache, [5, 5, 6, 6, 7, 7], now=2.0), now=3.0)
    cache.release(serve(cache, [1, 1, 2, 2], now=4.0), now=5.0)  # its tail 3,3 is older
    lease = serve(cache, [9, 9], now=6.0)
    assert len(cache.match(ROOT, np.array([1, 1, 2, 2, 3, 3], np.int32))) == 2
    assert len(cache.match(ROOT, np.array([5, 5, 6, 6, 7, 7], np.int32))) == 3
    assert serve(cache, [8, 8, 8, 8], now=7.0) is not None
    assert len(cache.match(ROOT, np.array([5, 5, 6, 6, 7, 7], np.int32))) == 1
    cache.check_integrity()
    cache.release(lease, now=8.0)


def test_a_released_lease_cannot_be_released_again():
    cache = PrefixCache(num_pages=8, page_size=PAGE)
    lease = serve(cache, [1, 1], now=0.0)
    cache.release(lease, now=1.0)
    with pytest.raises(IntegrityError, match="twice"):
        cache.release(lease, now=2.0)
    cache.check_integrity()


def test_requests_that_computed_the_same_tokens_share_one_copy_after_deduplication():
    cache = PrefixCache(num_pages=8, page_size=PAGE)
    tokens = np.array([1, 2, 3, 4], np.int32)
    empty = cache.match(ROOT, tokens)
    first, second = cache.lease(ROOT, empty, 0.0), cache.lease(ROOT, empty, 0.0)
    assert cache.grow(first, 2, 0.0)
    assert cache.grow(second, 2, 0.0)
    cache.publish(first, tokens)
    cache.publish(second, tokens)
    assert second.num_indexed == 0  # its blocks are private duplicates
    assert cache.num_leased == 4
    cache.deduplicate(second, tokens, 1.0, num_written=2)
    assert second.blocks.tolist() == first.blocks.tolist()
    assert cache.num_leased == 2
    cache.check_integrity()
    cache.release(first, 2.0)
    assert cache.num_leased == 2
    cache.release(second, 3.0)
    assert cache.num_leased == 0
    cache.check_integrity()


def test_the_blocks_of_a_failed_step_are_unpublished():
    cache = PrefixCache(num_pages=8, page_size=PAGE)
    kept = serve(cache, [1, 1], now=0.0)
    failed = serve(cache, [1, 1, 2, 2, 3, 3], now=0.0)
    follower = serve(cache, [1, 1, 2, 2, 4, 4], now=0.0)
    with pytest.raises(IntegrityError, match="continue"):
        cache.unpublish(failed, 1)
    cache.unpublish(follower, 2)
    cache.unpublish(failed, 1)
    assert len(cache.match(ROOT, np.array([1, 1, 2, 2], np.int32))) == 1
    cache.release(failed, 1.0)
    cache.release(follower, 1.0)
    cache.release(kept, 1.0)
    cache.check_integrity()
    assert cache.num_available == 8


def test_sequences_under_different_root_keys_share_no_block():
    cache = PrefixCache(num_pages=8, page_size=PAGE)
    cache.release(serve(cache, [1, 2, 3, 4], 0.0, RootKey("model", "a")), 0.0)
    tokens = np.array([1, 2, 3, 4], np.int32)
    assert len(cache.match(RootKey("model", "a"), tokens)) == 2
    assert len(cache.match(RootKey("model", "b"), tokens)) == 0
    assert len(cache.match(RootKey("other", "a"), tokens)) == 0


def test_the_eviction_queue_stays_small_under_churn():
    cache = PrefixCache(num_pages=16, page_size=PAGE)
    for now in range(2000):
        cache.release(serve(cache, [now % 5, 0, now % 3, 0], float(now)), float(now))
    assert len(cache._residency._queue._queues.top()[2]) < 200  # entries, stale ones too
    cache.check_integrity()


def test_a_lease_does_not_grow_beyond_the_available_pages():
    cache = PrefixCache(num_pages=4, page_size=PAGE)
    cache.release(serve(cache, [1, 1, 2, 2], now=0.0), now=0.0)
    lease = serve(cache, [1, 1], now=1.0)
    assert cache.num_available == 3
    assert not cache.grow(lease, 4, now=2.0)
    assert (len(lease), cache.num_indexed) == (1, 2)
    assert cache.grow(lease, 3, now=2.0)
    assert (len(lease), cache.num_indexed) == (4, 1)
    cache.check_integrity()


def test_a_reader_is_attached_to_the_indexed_part_of_its_prefix():
    cache = PrefixCache(num_pages=8, page_size=PAGE)
    cache.release(serve(cache, [1, 1, 2, 2, 3, 3], now=0.0), now=0.0)
    prefix = np.array([1, 1, 2, 2, 4, 4], np.int32)
    end = cache.set_reader("agent", ROOT, prefix, SOON)
    path = cache.match(ROOT, np.array([1, 1, 2, 2, 3, 3], np.int32)).tolist()
    assert end is not None
    assert end.block == path[1]
    assert [cache.next_read_of(block) for block in path] == [SOON, SOON, SUFFIX]
    cache.check_integrity()
    assert cache.set_reader("agent", ROOT, prefix[4:], SOON) is None
    assert node_of(cache, "agent") is None


def test_changed_nodes_are_returned_once():
    cache = PrefixCache(num_pages=8, page_size=PAGE)
    cache.release(serve(cache, [1, 1, 2, 2], now=0.0), now=0.0)
    cache.set_reader("agent", ROOT, np.array([1, 1, 2, 2], np.int32), SOON)
    (head,) = cache.tiers.drain_changed_nodes()
    assert cache.tiers.drain_changed_nodes() == set()
    cache.set_next_read("agent", scheduled(1.0))
    assert cache.tiers.drain_changed_nodes() == {head}
    cache.set_next_read("agent", scheduled(3.0))
    cache.flush(0.0)
    assert cache.tiers.drain_changed_nodes() == set()  # the node has left the index
    assert cache.tiers.loadable_blocks(head).tolist() == []


def test_host_only_blocks_are_loadable_once_their_copies_are_written():
    cache = PrefixCache(
        num_pages=4,
        page_size=PAGE,
        num_host_blocks=4,
        extent_sizes=(1, 2),
        should_offload=every_block,
    )
    cache.release(serve(cache, [1, 1, 2, 2, 3, 3], now=0.0), now=0.0)
    (path,) = [node.blocks for _, _, node in cache._nodes.index.nodes()]
    head = int(path[0])
    cache.evict(2, 0.0)
    assert cache.tiers.loadable_blocks(head).tolist() == []
    for offload in cache.tiers.drain_plans().offloads:
        cache.tiers.complete_offload(offload, data="copies")
    assert cache.tiers.loadable_blocks(head).tolist() == path[1:].tolist()
    assert cache.tiers.drain_changed_nodes() == {head}
    cache.check_integrity()


def test_flushing_removes_the_readers_of_flushed_prefixes():
    cache = PrefixCache(num_pages=4, page_size=PAGE)
    cache.release(serve(cache, [1, 1], now=0.0), now=0.0)
    cache.set_reader("agent", ROOT, np.array([1, 1], np.int32), SOON)
    assert cache.flush(0.0) == 1
    assert node_of(cache, "agent") is None
    cache.check_integrity()


class Interleavings(RuleBasedStateMachine):
    """Requests arrive, compute in chunks, fail and finish in a pool too small for them."""

    live = Bundle("live")

    def __init__(self):
        super().__init__()
        self.cache = PrefixCache(num_pages=12, page_size=PAGE)
        self.now = 0.0

    @rule(target=live, tokens=st.lists(st.integers(0, 1), min_size=1, max_size=12))
    def arrive(self, tokens):
        self.now += 1
        tokens = np.array(tokens, np.int32)
        lease = self.cache.lease(ROOT, self.cache.match(ROOT, tokens), self.now)
        return {"tokens": tokens, "lease": lease}

    @rule(request=live, pages=st.integers(1, 3), fails=st.booleans())
    def compute(self, request, pages, fails):
        self.now += 1
        lease, tokens = request["lease"], request["tokens"]
        room = self.cache.num_available
        if not self.cache.grow(lease, pages, self.now):
            assert pages > room
            return
        self.cache.deduplicate(lease, tokens[: len(lease) * PAGE], self.now, num_written=0)
        before = lease.num_indexed
        self.cache.publish(lease, tokens[: len(lease) * PAGE])
        if fails and lease.num_indexed > before:
            if self.cache._table.num_children[lease.blocks[lease.num_indexed - 1]]:
                return
            shared = self.cache._table.leases[lease.blocks[before : lease.num_indexed]] > 1
            if not shared.any():
                self.cache.unpublish(lease, before)
                self.cache.publish(lease, tokens[: len(lease) * PAGE])

    @rule(request=consumes(live))
    def finish(self, request):
        self.now += 1
        self.cache.release(request["lease"], self.now)

    @rule()
    def flush(self):
        self.cache.flush(0.0)
        assert self.cache.num_available == self.cache._table.num_free_pages

    @rule(count=st.integers(1, 4))
    def evict(self, count):
        idle = self.cache.num_available - self.cache._table.num_free_pages
        self.cache._residency.evict(min(count, idle), 0.0)

    @invariant()
    def integrity_holds(self):
        self.cache.check_integrity()


Interleavings.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestInterleavings = Interleavings.TestCase
