"""Device and host together: what is read back is what was written, whatever moved meanwhile."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kvflow_jax.cache.blocks import SUFFIX, DeviceState
from kvflow_jax.cache.index import RootKey
from kvflow_jax.cache.policy import kvflow, lru
from kvflow_jax.cache.prefix_cache import PrefixCache, every_block, has_reader
from kvflow_jax.cache.reuse_tracker import NEVER_STEPS, UNKNOWN_STEPS

PAGE = 2
ROOT = RootKey("model")


class Machine:
    """A cache over pages whose content is the whole sequence up to them: a wrong page shows."""

    def __init__(self, num_pages=8, num_host=8, order=kvflow, should_offload=has_reader, sizes=(1, 4)):
        self.cache = PrefixCache(
            num_pages,
            PAGE,
            order,
            num_host_blocks=num_host,
            extent_sizes=sizes,
            should_offload=should_offload,
        )
        self.pages: dict[int, tuple] = {}
        self.now = 0.0
        self.loads = []  # taken, not landed
        self.copies = []  # (extent, contents) read, not landed

    def take(self):
        """What the engine does before a step: read for offloads, begin loads."""
        residency = self.cache.residency
        for backup in residency.offloads:
            self.copies.append((backup.extent, [self.pages[s] for s in backup.pages.tolist()]))
        self.loads += residency.loads
        residency.offloads, residency.loads = [], []

    def land(self, load):
        places, slots = self.cache.residency.complete(load)
        for place, slot in zip(places.tolist(), slots.tolist(), strict=True):
            self.pages[slot] = load.extent.data[place]

    def settle(self):
        self.take()
        while self.loads or self.copies:
            while self.copies:
                self.cache.residency.complete_offload(*self.copies.pop(0))
            while self.loads:
                self.land(self.loads.pop(0))
            self.take()

    def begin(self, tokens):
        """Lease what is cached of ``tokens``, if there is room."""
        tokens = np.asarray(tokens, np.int32)
        matched = self.cache.residency.usable(self.cache.match(ROOT, tokens))
        on_device = self.cache.residency.num_on_device(matched)
        idle = int((self.cache.table.leases[matched[:on_device]] == 0).sum())
        if len(matched) - on_device + idle > self.cache.num_available:
            return None
        self.now += 1
        lease = self.cache.lease(ROOT, matched, self.now)
        self.take()
        return lease

    def compute(self, lease, tokens):
        """Write the rest of ``tokens``, as a step would; False for lack of room."""
        tokens = np.asarray(tokens, np.int32)
        num = len(tokens) // PAGE - len(lease)
        if num < 0 or not self.cache.grow(lease, num, self.now):
            return False
        self.take()  # slots are read before the step writes them
        start = len(lease) - num
        for at, slot in enumerate(self.cache.table.page[lease.blocks[start:]].tolist(), start):
            self.pages[slot] = tuple(tokens[: (at + 1) * PAGE].tolist())
        self.cache.publish(lease, tokens, self.now)
        return True

    def serve(self, tokens, owner=None, steps=UNKNOWN_STEPS, num_fixed=None):
        lease = self.begin(tokens)
        self.settle()
        assert self.compute(lease, tokens)
        self.check(lease, tokens)
        if owner is not None:
            prefix = np.asarray(tokens[: num_fixed or len(tokens)], np.int32)
            self.cache.set_reader(owner, ROOT, prefix, steps)
        self.now += 1
        self.cache.release(lease, self.now)
        self.cache.check_integrity()
        return lease

    def check(self, lease, tokens):
        """What a request reads through its lease is its own sequence."""
        for at, block in enumerate(lease.blocks.tolist()):
            if self.cache.table.device_state[block] == DeviceState.VALID:
                slot = int(self.cache.table.page[block])
                assert self.pages[slot] == tuple(int(t) for t in tokens[: (at + 1) * PAGE])

    def resident(self, tokens):
        """Blocks of ``tokens`` on the device, and cached in all."""
        matched = self.cache.match(ROOT, np.asarray(tokens, np.int32))
        return self.cache.residency.num_on_device(matched), len(matched)


def prompt(agent, length=8):
    return [agent] * length


def test_an_evicted_prefix_is_kept_on_the_host_and_comes_back():
    m = Machine(num_pages=4)
    m.serve(prompt(1), owner="a", steps=3)
    m.serve(prompt(2))  # evicts the first, for lack of room
    m.settle()
    assert m.resident(prompt(1)) == (0, 4)
    lease = m.begin(prompt(1))
    assert m.cache.residency.is_loading(lease.blocks)
    m.settle()
    assert not m.cache.residency.is_loading(lease.blocks)
    m.check(lease, prompt(1))
    assert m.resident(prompt(1)) == (4, 4)
    m.cache.check_integrity()


def test_a_copy_written_before_the_one_it_continues_is_not_loaded():
    m = Machine(num_pages=3, sizes=(1,), should_offload=every_block)
    lease = m.begin(prompt(1, 6))
    assert m.compute(lease, prompt(1, 6))
    m.cache.release(lease, m.now)
    m.cache.residency.evict(2)
    m.take()
    assert len(m.copies) == 3
    m.cache.residency.complete_offload(*m.copies.pop())  # the last of the three
    matched = m.cache.match(ROOT, np.array(prompt(1, 6), np.int32))
    assert len(m.cache.residency.usable(matched)) == 1  # the block that is on the device
    m.settle()
    assert len(m.cache.residency.usable(matched)) == 3


def test_a_suffix_goes_before_a_prefix_and_a_far_agent_before_a_near_one():
    m = Machine(num_pages=12, num_host=0)
    m.serve(prompt(1), owner="near", steps=1)
    m.serve(prompt(2), owner="far", steps=5)
    m.serve(prompt(3))  # nobody's, and used last
    m.cache.residency.evict(4)
    assert [m.resident(prompt(i))[0] for i in (1, 2, 3)] == [4, 4, 0]
    m.cache.residency.evict(1)
    assert [m.resident(prompt(i))[0] for i in (1, 2)] == [4, 3]  # the tail alone
    m.cache.set_steps("far", 0)
    m.cache.residency.evict(2)
    assert [m.resident(prompt(i))[0] for i in (1, 2)] == [2, 3]
    m.cache.check_integrity()


def test_what_agents_share_counts_as_the_soonest_of_them():
    m = Machine(num_pages=10, num_host=0)
    shared = prompt(9, 4)
    m.serve(shared + prompt(1, 4), owner="a", steps=7)
    m.serve(shared + prompt(2, 4), owner="b", steps=2)
    m.serve(prompt(3), owner="c", steps=5)
    table = m.cache.table
    path = m.cache.match(ROOT, np.array(shared + prompt(1, 4), np.int32))
    assert [m.cache.steps_of(block) for block in path.tolist()] == [2, 2, 7, 7]
    m.cache.set_steps("b", 9)
    assert [m.cache.steps_of(block) for block in path.tolist()] == [7, 7, 7, 7]
    m.cache.remove_reader("a")
    m.cache.remove_reader("b")
    assert np.isinf(table.steps[table.head[path]]).all()
    m.cache.check_integrity()


def test_the_dynamic_part_of_a_prompt_is_a_suffix():
    m = Machine(num_pages=8)
    m.serve(prompt(1, 6) + prompt(5, 4), owner="a", steps=1, num_fixed=6)
    path = m.cache.match(ROOT, np.array(prompt(1, 6) + prompt(5, 4), np.int32))
    assert [m.cache.steps_of(block) for block in path.tolist()] == [1, 1, 1, SUFFIX, SUFFIX]
    m.serve(prompt(1, 6) + prompt(6, 4), owner="a", steps=1, num_fixed=6)
    assert m.resident(prompt(1, 6) + prompt(5, 4))[1] == 5
    m.cache.residency.evict(4)
    assert m.resident(prompt(1, 6) + prompt(5, 4)) == (3, 3)
    assert m.cache.residency.num_offloaded == 0  # suffixes are dropped


def test_unknown_order_goes_by_recency_between_known_and_dead():
    m = Machine(num_pages=16, num_host=0)
    m.serve(prompt(1), owner="dead", steps=NEVER_STEPS)
    m.serve(prompt(2), owner="old", steps=UNKNOWN_STEPS)
    m.serve(prompt(3), owner="new", steps=UNKNOWN_STEPS)
    m.serve(prompt(4), owner="known", steps=9)
    gone = []
    for _ in range(4):
        m.cache.residency.evict(4)
        gone.append([i for i in (1, 2, 3, 4) if m.resident(prompt(i))[0] == 0])
    assert gone == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]


def test_the_host_keeps_what_is_needed_sooner():
    m = Machine(num_pages=4, num_host=8, sizes=(1, 2))
    for agent, steps in ((1, 1), (2, 9), (3, 2), (4, 8)):
        m.serve(prompt(agent), owner=agent, steps=steps)
        m.settle()
    # Agent 4 is on the device; of the others the two needed soonest have their copies.
    assert [m.resident(prompt(i))[1] for i in (1, 2, 3, 4)] == [4, 0, 4, 4]
    m.cache.check_integrity()


def test_an_early_backup_makes_eviction_free():
    m = Machine(num_pages=4)
    m.serve(prompt(1), owner="a", steps=3)
    end = m.cache.match(ROOT, np.array(prompt(1), np.int32))[-1]
    assert m.cache.residency.offload(int(end)) == 4
    assert m.cache.residency.offload(int(end)) == 0  # nothing is copied twice
    m.settle()
    m.cache.residency.evict(4)
    assert not m.cache.residency.offloads
    assert m.resident(prompt(1)) == (0, 4)


def test_a_lost_copy_is_recomputed():
    m = Machine(num_pages=4)
    m.serve(prompt(1), owner="a", steps=3)
    m.serve(prompt(2), owner="b", steps=1)
    m.settle()
    first = min(m.cache.residency.host.extents)
    m.cache.residency.drop_lost_extent(m.cache.residency.host.extents[first])
    m.cache.check_integrity()
    assert m.resident(prompt(1)) == (0, 0)
    m.serve(prompt(1))


def test_a_request_that_needs_room_cancels_a_prefetch():
    m = Machine(num_pages=4)
    m.serve(prompt(1), owner="a", steps=1)
    m.serve(prompt(2), owner="b", steps=0)
    m.settle()
    m.cache.residency.evict(4)
    m.take()
    missing = m.cache.loadable_blocks(m.cache.reuse_tracker.node_of("a"))
    m.cache.residency.load(missing, is_prefetch=True)
    m.take()
    late = m.loads[0]
    lease = m.begin(prompt(3))
    assert m.compute(lease, prompt(3))
    assert m.resident(prompt(1)) == (0, 4)
    m.land(late)  # too late: nothing is written
    m.check(lease, prompt(3))
    m.cache.check_integrity()
    assert m.cache.residency.num_wasted == 4


def test_a_recomputed_block_gives_its_page_to_the_one_on_the_host():
    m = Machine(num_pages=8)
    m.serve(prompt(1), owner="a", steps=1)
    m.settle()
    m.cache.residency.evict(4)
    m.settle()
    tokens = np.array(prompt(1), np.int32)
    lease = m.cache.lease(ROOT, np.empty(0, np.int32), 9.0)  # as one that must compute it
    assert m.compute(lease, tokens)
    assert lease.num_indexed == 0
    m.cache.deduplicate(lease, tokens, 9.0, num_written=4)
    assert lease.num_indexed == 4
    assert m.resident(prompt(1)) == (4, 4)
    m.check(lease, prompt(1))
    m.cache.check_integrity()
    m.cache.release(lease, 10.0)
    m.cache.check_integrity()


class Interleavings(RuleBasedStateMachine):
    """Requests, moves and owners in any order, in a pool and a host too small for them."""

    live = Bundle("live")
    order, should_offload = staticmethod(kvflow), staticmethod(has_reader)

    def __init__(self):
        super().__init__()
        self.m = Machine(10, 7, self.order, self.should_offload)

    @rule(target=live, tokens=st.lists(st.integers(0, 1), min_size=2, max_size=12))
    def arrive(self, tokens):
        tokens = tokens[: len(tokens) // PAGE * PAGE]
        lease = self.m.begin(tokens)
        return {"tokens": tokens, "lease": lease}

    @rule(request=live, pages=st.integers(1, 3))
    def compute(self, request, pages):
        m, lease = self.m, request["lease"]
        if lease is None or m.cache.residency.is_loading(lease.blocks):
            return
        tokens = np.array(request["tokens"], np.int32)
        m.cache.deduplicate(lease, tokens, m.now, num_written=len(lease))
        if not m.cache.residency.is_loading(lease.blocks):
            m.compute(lease, request["tokens"][: (len(lease) + pages) * PAGE])
        m.check(lease, request["tokens"])

    @rule(request=consumes(live))
    def finish(self, request):
        if request["lease"] is not None:
            self.m.now += 1
            self.m.check(request["lease"], request["tokens"])
            self.m.cache.release(request["lease"], self.m.now)

    @rule(
        owner=st.integers(0, 4),
        tokens=st.lists(st.integers(0, 1), min_size=2, max_size=12),
        steps=st.sampled_from([0.0, 1.0, 2.0, UNKNOWN_STEPS, NEVER_STEPS]),
    )
    def anchor(self, owner, tokens, steps):
        self.m.cache.set_reader(owner, ROOT, np.array(tokens, np.int32), steps)

    @rule(owner=st.integers(0, 4), steps=st.sampled_from([0.0, 1.0, 3.0, NEVER_STEPS]))
    def move(self, owner, steps):
        self.m.cache.set_steps(owner, steps)

    @rule(owner=st.integers(0, 4))
    def unanchor(self, owner):
        self.m.cache.remove_reader(owner)

    @rule(owner=st.integers(0, 4), most=st.integers(1, 6))
    def offload(self, owner, most):
        head = self.m.cache.reuse_tracker.node_of(owner)
        if head is not None:
            end = self.m.cache.last_block_of(head)
            if self.m.cache.table.page[end] >= 0:
                self.m.cache.residency.offload(end, max_blocks=most)
                self.m.take()

    @rule(owner=st.integers(0, 4), most=st.integers(1, 6))
    def prefetch(self, owner, most):
        head = self.m.cache.reuse_tracker.node_of(owner)
        if head is not None:
            missing = self.m.cache.loadable_blocks(head)[:most]
            if 0 < len(missing) <= self.m.cache.table.num_free_pages:
                self.m.cache.residency.load(missing, is_prefetch=True)
                self.m.take()

    @rule(which=st.integers(0, 9))
    def land(self, which):
        if self.m.loads:
            self.m.land(self.m.loads.pop(which % len(self.m.loads)))

    @rule(which=st.integers(0, 9))
    def cancel(self, which):
        if self.m.loads:
            self.m.cache.residency.cancel(self.m.loads[which % len(self.m.loads)])

    @rule(which=st.integers(0, 9))
    def save(self, which):
        if self.m.copies:
            self.m.cache.residency.complete_offload(*self.m.copies.pop(which % len(self.m.copies)))

    @rule(which=st.integers(0, 9))
    def lose(self, which):
        """A backup failed."""
        if self.m.copies and not self.m.cache.residency._loading:
            extent, _ = self.m.copies.pop(which % len(self.m.copies))
            self.m.cache.residency.drop_lost_extent(extent)

    @rule(count=st.integers(1, 4))
    def evict(self, count):
        cache = self.m.cache
        cache.residency.evict(min(count, cache.num_available - cache.table.num_free_pages))
        self.m.take()

    @rule()
    def flush(self):
        if not self.m.cache._leases:
            self.m.cache.flush()
            assert self.m.cache.num_indexed == 0

    @invariant()
    def is_whole(self):
        self.m.cache.check_integrity()


class LruInterleavings(Interleavings):
    order, should_offload = staticmethod(lru), staticmethod(every_block)


for machine in (Interleavings, LruInterleavings):
    machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestInterleavings = Interleavings.TestCase
TestLruInterleavings = LruInterleavings.TestCase
