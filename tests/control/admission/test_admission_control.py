"""Runs that ``AdmissionControl`` throttles and resumes, over a cache of 100 blocks."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvflow_jax.control.admission import admission_control
from kvflow_jax.control.admission.admission_control import AdmissionControl

NUM_BLOCKS, BLOCK_S = 100, 0.01


class Harness:
    """Admission control on a clock; each run has one agent of the same name."""

    def __init__(self):
        self.now = 0.0
        self.throttled = []  # in order
        self.resumed = []
        self.decoded_s = 0.0
        self.counted = []  # blocks whose compute time was asked for
        self.admission = AdmissionControl(
            lambda: NUM_BLOCKS,
            self.compute_s,
            lambda: self.decoded_s,
            self.throttled.append,
            self.resumed.append,
        )

    def compute_s(self, num_blocks):
        self.counted.append(num_blocks)
        return num_blocks * BLOCK_S

    def call(self, run, *agents, priority=0, tenant="", rank=0):
        self.admission.on_call_added(
            run, agents or [run], self.now, priority=priority, tenant=tenant, rank=rank
        )
        return not self.admission.is_throttled(run)

    def finish(self, run):
        self.admission.on_call_finished(run, self.now)

    def begin(self, run, num_blocks, *agents):
        """Start a call of a run with a working set of ``num_blocks`` of its own."""
        assert self.call(run, *agents)
        self.admission.set_working_set(run, blocks_of(run, num_blocks))

    def recompute(self, agent, num_blocks, num_cached=0):
        """Blocks that count as recomputed when an agent's prompt was computed."""
        self.admission.on_prefill_done(blocks_of(agent, num_blocks), num_cached, [agent])
        return self.counted[-1]

    def advance(self, seconds, recompute_share=0.0, decode_share=0.0):
        """Let time pass; shares of it go into recomputation and into decode steps."""
        self.admission.set_working_set("many", blocks_of("many", 100))
        for _ in range(seconds):
            self.recompute("many", int(recompute_share / BLOCK_S))
            self.now += 1.0
            self.decoded_s += decode_share
            self.admission.update(self.now)
            self.admission.check_integrity()


def blocks_of(name, num_blocks):
    return np.arange(num_blocks) + 1000 * sum(map(ord, name))


def thrashing(*runs, num_blocks=30):
    """Runs with calls, after a minute spent entirely on recomputation."""
    harness = Harness()
    for run in runs:
        harness.begin(run, num_blocks)
    harness.advance(60, recompute_share=1.0)
    return harness


def test_no_run_is_throttled_while_nothing_is_recomputed():
    harness = Harness()
    for run in "abcdefgh":
        harness.begin(run, 90)
    harness.advance(100)
    assert harness.admission.num_active_blocks == 720
    assert not harness.throttled
    assert harness.call("i")


def test_no_run_is_throttled_while_all_working_sets_fit():
    harness = thrashing("a", "b", num_blocks=40)
    assert not harness.throttled
    assert harness.call("c")


def test_recomputation_below_the_high_watermark_throttles_no_run():
    harness = Harness()
    for run in "abcd":
        harness.begin(run, 30)
    harness.advance(300, recompute_share=admission_control.HIGH_WATERMARK - 0.05)
    assert not harness.throttled


def test_the_newest_runs_are_throttled_while_the_cache_thrashes():
    harness = thrashing("a", "b", "c", "d")
    assert harness.throttled == ["d", "c"]
    assert harness.admission.num_active_blocks == 60
    assert harness.call("a")
    assert not harness.call("d")
    assert harness.admission.num_queued == 1


def test_a_started_call_goes_on_and_the_next_one_waits():
    """A run is throttled in the middle of a call: only further calls of it wait."""
    harness = thrashing("a", "b", "c", "d")
    assert not harness.admission.is_throttled("d")
    assert not harness.call("d")
    harness.finish("d")  # the call that had started
    assert harness.admission.is_throttled("d")
    harness.finish("d")  # the call that waited was aborted
    assert harness.admission.num_queued == 0


def test_the_last_active_run_is_never_throttled():
    harness = thrashing("a", num_blocks=500)
    assert not harness.throttled
    harness = thrashing("a", "b", num_blocks=500)
    assert harness.throttled == ["b"]
    harness.admission.end_run("a")
    harness.advance(1, recompute_share=1.0)
    assert harness.call("b")  # alone, it does not wait for room that there will never be


def test_a_run_that_shares_all_its_blocks_is_not_throttled():
    harness = Harness()
    harness.begin("a", 60)
    harness.begin("b", 60)
    assert harness.call("c", "a")  # reads what a reads
    harness.admission.set_working_set("d", blocks_of("a", 60))
    assert harness.call("d")  # and so does this run, as another agent
    harness.advance(60, recompute_share=1.0)
    assert harness.throttled == ["b"]


def test_a_run_that_reads_blocks_of_active_runs_only_is_admitted():
    harness = thrashing("a", "b", "c", "d")
    assert harness.call("e", "a", "b")
    assert not harness.call("c")
    assert harness.call("f", "a", "b")  # not even behind a queued run


def test_shared_blocks_count_once():
    harness = Harness()
    for run in "abc":
        harness.begin(run, 10, run, "shared")
    harness.admission.set_working_set("shared", blocks_of("a", 20))  # and begins with blocks of a
    assert harness.admission.num_active_blocks == 10 + 10 + 20
    harness.admission.end_run("a")
    assert harness.admission.num_active_blocks == 10 + 10 + 20
    harness.admission.end_run("b")
    assert harness.admission.num_active_blocks == 10 + 20
    harness.admission.check_integrity()


def test_the_run_queued_longest_is_resumed_first_though_a_smaller_one_would_fit():
    harness = thrashing("a", "b", "c", "d")
    assert not harness.call("d")
    assert not harness.call("c")
    harness.admission.set_working_set("c", blocks_of("c", 10))
    harness.finish("a")
    harness.admission.end_run("a")
    harness.admission.set_working_set("b", blocks_of("b", 60))
    harness.advance(1)
    assert harness.admission.num_queued == 2  # there is room for c, but d is in front of it
    harness.admission.set_working_set("b", blocks_of("b", 30))
    harness.advance(1)
    assert harness.resumed[-2:] == ["d", "c"]
    assert harness.admission.num_queued == 0


def test_a_run_that_idles_for_long_gives_way():
    harness = thrashing("a", "b", "c", "d")
    assert not harness.call("d")
    harness.finish("b")
    harness.advance(1, recompute_share=0.1)
    assert harness.admission.is_throttled("d")  # most idle times are not shorter
    harness.advance(1, recompute_share=0.1)
    assert harness.throttled[-1] == "b"
    assert not harness.admission.is_throttled("d")
    assert not harness.call("b")


def test_a_long_idle_time_is_learned_from_idle_times():
    harness = thrashing("a", "b", "c", "d")
    for _ in range(40):
        harness.finish("b")
        harness.advance(4, recompute_share=0.1)
        assert harness.call("b")
    assert not harness.call("d")
    harness.finish("b")
    harness.advance(2, recompute_share=0.1)
    assert harness.admission.is_throttled("d")


def test_a_run_gives_way_at_the_end_of_its_time_slice():
    harness = thrashing("a", "b", "c", "d")
    assert not harness.call("d")
    harness.advance(int(admission_control.MIN_SLICE_S), recompute_share=0.1)
    assert harness.admission.is_throttled("d")
    harness.advance(1, recompute_share=0.1)
    assert harness.throttled[-1] == "a"  # active longest
    assert harness.resumed[-1] == "d"


def test_a_time_slice_grows_with_the_cost_of_the_swap():
    harness = thrashing("a", "b", "c", "d")
    harness.admission.set_working_set("d", blocks_of("d", 50))
    assert not harness.call("d")
    harness.advance(int(admission_control.SLICE_FACTOR * 50 * BLOCK_S), recompute_share=0.1)
    assert harness.admission.is_throttled("d")
    harness.advance(1, recompute_share=0.1)
    assert not harness.admission.is_throttled("d")


def test_no_run_is_throttled_if_smaller_decode_batches_cost_more():
    harness = Harness()
    for run in "abcd":
        harness.begin(run, 60)  # 2.4 times the harness
    harness.advance(200, recompute_share=0.4, decode_share=0.6)
    assert not harness.throttled
    harness.advance(100, recompute_share=0.9, decode_share=0.1)
    assert harness.throttled


def test_all_runs_are_resumed_once_smaller_decode_batches_cost_more():
    harness = thrashing("a", "b", "c", "d")
    assert not harness.call("c")
    assert not harness.call("d")
    harness.admission.set_working_set("c", blocks_of("c", 200))
    harness.advance(3, recompute_share=0.1, decode_share=0.0)
    assert harness.admission.num_queued == 2
    harness.advance(200, recompute_share=0.9, decode_share=1.0)
    assert harness.resumed[-2:] == ["c", "d"]


def test_a_run_without_a_working_set_does_not_queue():
    harness = thrashing("a", "b", "c", "d")
    assert not harness.call("d")
    assert harness.call("new")
    harness.admission.set_working_set("new", blocks_of("new", 30))
    harness.advance(1, recompute_share=1.0)
    assert harness.throttled[-1] == "new"  # now it has one


def test_no_run_gives_way_unless_the_queued_run_then_fits():
    harness = thrashing("a", "b", "c", "d")
    harness.admission.set_working_set("d", blocks_of("d", 70))
    slice_s = int(admission_control.SLICE_FACTOR * 70 * BLOCK_S)
    assert not harness.call("d")
    harness.admission.end_run("b")
    harness.advance(slice_s // 2, recompute_share=0.1)
    harness.begin("new", 30)
    harness.advance(
        slice_s // 2 + 2, recompute_share=0.1
    )  # the slice of a is over, that of new is not
    assert harness.throttled == ["d", "c"]
    harness.advance(slice_s // 2, recompute_share=0.1)
    assert harness.throttled == ["d", "c", "a", "new"]
    assert harness.resumed[-1] == "d"


def test_runs_of_higher_priority_are_admitted_first():
    harness = thrashing("a", "b", "c", "d")
    assert not harness.call("c")
    assert not harness.call("d", priority=-1)
    assert harness.call("d", priority=1)  # before c, and instead of a run of lower priority
    assert harness.throttled == ["d", "c", "a"]
    assert harness.call("b", priority=1)
    harness.admission.set_working_set("e", blocks_of("e", 30))
    assert not harness.call(
        "e", priority=1
    )  # no run is lower; those of its own priority have their time slices
    harness.advance(1, recompute_share=0.1)
    assert harness.throttled == ["d", "c", "a"]
    harness.advance(int(admission_control.MIN_SLICE_S), recompute_share=0.1)
    assert harness.resumed[-1] == "e"
    harness.admission.end_run("b")
    harness.advance(1, recompute_share=0.1)
    # Resumed at once, before runs of lower priority.
    assert not harness.admission.is_throttled("d")
    assert harness.admission.is_throttled("c")


def test_a_run_of_another_tenant_waits_for_no_crowd_whatever_priority_that_claims():
    harness = thrashing("a", "b", "c", "d")
    assert not harness.call("c")
    assert harness.call("d", tenant="other", priority=-9)  # the crowd keeps as many
    assert not harness.admission.is_throttled("d")


def test_a_run_of_a_higher_rank_precedes_those_of_all_tenants():
    harness = thrashing("a", "b", "c", "d")
    assert not harness.call("c", tenant="other", rank=-1)
    assert harness.call("d", rank=1)


def test_the_limit_grows_again_once_little_is_recomputed():
    harness = thrashing("a", "b", "c", "d")
    for run in "abcd":
        harness.call(run)
    assert harness.admission.num_queued == 2
    harness.advance(200)
    assert all(harness.call(run) for run in "abcd")
    assert harness.admission.num_active_blocks == 120


def test_the_first_prefill_of_a_resumed_run_is_no_recomputation():
    harness = thrashing("a", "b", "c", "d")
    assert harness.recompute("a", 30) == 30
    assert harness.recompute("a", 30, num_cached=20) == 10
    assert not harness.call("d")
    harness.admission.end_run("a")
    harness.advance(1)
    assert harness.resumed[-1] == "d"
    assert harness.recompute("d", 30) == 0  # its blocks were evicted while it was throttled
    assert harness.recompute("d", 30) == 30


def test_the_first_prefill_of_a_reader_is_no_recomputation():
    harness = Harness()
    assert harness.recompute("a", 30) == 0
    harness.begin("a", 30)
    assert harness.recompute("a", 50, num_cached=30) == 0
    assert harness.recompute("a", 50, num_cached=10) == 20


def state_of(admission):
    return {k: v for k, v in vars(admission).items() if isinstance(v, dict | set) and v}


def test_ended_runs_and_removed_readers_leave_no_state():
    harness = thrashing("a", "b", "c", "d")
    for run in "cd":
        assert not harness.call(run)  # a second call each
    for run in "ac":
        harness.admission.end_run(run)  # in the middle of calls
        harness.admission.add_readers(run, ["late"])  # by a call that ends after its run
        harness.finish(run)
    assert not harness.admission.is_throttled("c")
    harness.call("a")  # a new run of that name
    for run in "abcd":
        while run in harness.admission._num_calls:
            harness.finish(run)
        harness.admission.end_run(run)
        harness.admission.check_integrity()
    assert harness.admission.num_active_blocks == harness.admission.num_queued == 0
    for reader in ("a", "b", "c", "d", "many"):
        harness.admission.remove_working_set(reader)
    assert not state_of(harness.admission)


def test_a_call_that_ends_after_its_run_leaves_no_state():
    harness = Harness()
    harness.begin("a", 30)
    harness.admission.end_run("a")
    harness.admission.add_readers("a", ["late"])
    harness.finish("a")
    harness.admission.remove_working_set("a")
    assert not state_of(harness.admission)


def test_a_reader_that_a_run_removes_is_active_no_longer():
    harness = Harness()
    harness.begin("a", 30, "a", "shared")
    harness.admission.set_working_set("shared", blocks_of("b", 20))
    assert harness.call("b", "shared")
    harness.admission.remove_reader("a", "shared")
    assert harness.admission.num_active_blocks == 50
    harness.admission.remove_reader("a", "a")
    assert harness.admission.num_active_blocks == 20
    harness.admission.check_integrity()


class Interleavings(RuleBasedStateMachine):
    """Random runs. Every throttled run is resumed once enough time has passed."""

    runs = st.sampled_from("abcdef")
    readers = st.sampled_from(["a", "b", "c", "d", "x", "y"])

    def __init__(self):
        super().__init__()
        self.harness = thrashing("a", "b", "c", "d")  # two of them are throttled
        self.admission = self.harness.admission
        self.calls = dict.fromkeys("abcd", 1) | dict.fromkeys("ef", 0)

    @rule(run=runs, others=st.sets(readers, max_size=2))
    def call(self, run, others):
        self.harness.call(run, *sorted({run, *others}))
        self.calls[run] += 1

    @rule(run=runs)
    def finish(self, run):
        if self.calls[run]:
            self.harness.finish(run)
            self.calls[run] -= 1

    @rule(run=runs)
    def end(self, run):
        self.admission.end_run(run)

    @rule(run=runs, reader=readers)
    def add_reader(self, run, reader):
        self.admission.add_readers(run, [reader])

    @rule(run=runs, reader=readers)
    def remove_reader(self, run, reader):
        self.admission.remove_reader(run, reader)

    @rule(reader=readers, like=readers, num_blocks=st.integers(10, 80))
    def set_working_set(self, reader, like, num_blocks):
        self.admission.set_working_set(reader, blocks_of(like, num_blocks))

    @rule(reader=readers)
    def remove_working_set(self, reader):
        self.admission.remove_working_set(reader)

    @rule(reader=readers, num_blocks=st.integers(0, 80), num_cached=st.integers(0, 80))
    def recompute(self, reader, num_blocks, num_cached):
        assert 0 <= self.harness.recompute(reader, num_blocks, num_cached) <= num_blocks

    @rule(seconds=st.integers(1, 60), recompute_share=st.sampled_from([0.0, 0.1, 1.0, 1.0]))
    def advance(self, seconds, recompute_share):
        self.harness.advance(seconds, recompute_share)

    @invariant()
    def integrity_holds(self):
        self.admission.check_integrity()
        throttled = [run for run in self.calls if self.admission.is_throttled(run)]
        assert len(throttled) == self.admission.num_queued
        assert all(self.calls[run] for run in throttled)

    def teardown(self):
        waiting = [run for run in self.calls if self.admission.is_throttled(run)]
        self.harness.resumed.clear()
        self.harness.advance(500, recompute_share=1.0)  # in which no call ends
        assert set(waiting) <= set(self.harness.resumed)
        for run, num_calls in self.calls.items():
            for _ in range(num_calls):
                self.harness.finish(run)
            self.admission.end_run(run)
        for reader in ("a", "b", "c", "d", "e", "f", "x", "y", "many"):
            self.admission.remove_working_set(reader)
        assert not state_of(self.admission)


Interleavings.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestInterleavings = Interleavings.TestCase
