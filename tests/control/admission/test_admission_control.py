"""Which runs go on where not all fit, as ``AdmissionControl`` decides it: a cache of 100 blocks."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvflow_jax.control.admission import admission_control
from kvflow_jax.control.admission.admission_control import AdmissionControl

NUM_BLOCKS, BLOCK_S = 100, 0.01


class Cache:
    """Runs of one agent each, named alike, and the seconds that pass."""

    def __init__(self):
        self.now = 0.0
        self.throttled = []  # one after the other
        self.resumed = []
        self.decoded_s = 0.0
        self.counted = []  # blocks of which it was asked what they cost
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

    def call(self, run, *agents, priority=0):
        self.admission.on_call_added(run, agents or [run], self.now, priority=priority)
        return not self.admission.is_throttled(run)

    def called(self, run):
        self.admission.on_call_finished(run, self.now)

    def begin(self, run, num_blocks, *agents):
        """A run that calls, and reads so many blocks of its own."""
        assert self.call(run, *agents)
        self.admission.set_working_set(run, blocks_of(run, num_blocks))

    def lost(self, agent, num_blocks, num_found=0):
        """Blocks that count as lost when an agent's prompt is read."""
        self.admission.on_prefill_done(blocks_of(agent, num_blocks), num_found, [agent])
        return self.counted[-1]

    def pass_s(self, seconds, share_lost=0.0, share_decoding=0.0):
        """Let time pass, so much of it with what had been there, or in steps without a prompt."""
        self.admission.set_working_set("many", blocks_of("many", 100))
        for _ in range(seconds):
            self.lost("many", int(share_lost / BLOCK_S))
            self.now += 1.0
            self.decoded_s += share_decoding
            self.admission.update(self.now)
            self.admission.check_integrity()


def blocks_of(name, num_blocks):
    return np.arange(num_blocks) + 1000 * sum(map(ord, name))


def thrashing(*runs, num_blocks=30):
    """Runs that have lost much for long, and are still in a call."""
    cache = Cache()
    for run in runs:
        cache.begin(run, num_blocks)
    cache.pass_s(60, share_lost=1.0)
    return cache


def test_nothing_waits_while_nothing_is_lost():
    cache = Cache()
    for run in "abcdefgh":
        cache.begin(run, 90)
    cache.pass_s(100)
    assert cache.admission.num_active_blocks == 720
    assert not cache.throttled
    assert cache.call("i")


def test_nothing_waits_while_all_fits():
    cache = thrashing("a", "b", num_blocks=40)
    assert not cache.throttled
    assert cache.call("c")


def test_little_that_is_lost_holds_nobody_back():
    cache = Cache()
    for run in "abcd":
        cache.begin(run, 30)
    cache.pass_s(300, share_lost=admission_control.HIGH_WATERMARK - 0.05)
    assert not cache.throttled


def test_while_much_is_lost_the_newest_go_and_wait():
    cache = thrashing("a", "b", "c", "d")
    assert cache.throttled == ["d", "c"]
    assert cache.admission.num_active_blocks == 60
    assert cache.call("a")
    assert not cache.call("d")
    assert cache.admission.num_queued == 1


def test_what_began_goes_on_and_what_follows_waits():
    """A run is throttled in the middle of a call: another call of it waits, that one does not."""
    cache = thrashing("a", "b", "c", "d")
    assert not cache.admission.is_throttled("d")
    assert not cache.call("d")
    cache.called("d")  # the one that had begun
    assert cache.admission.is_throttled("d")
    cache.called("d")  # the one that waited, and has given up
    assert cache.admission.num_queued == 0


def test_the_last_run_is_never_parked_however_much_it_reads():
    cache = thrashing("a", num_blocks=500)
    assert not cache.throttled
    cache = thrashing("a", "b", num_blocks=500)
    assert cache.throttled == ["b"]
    cache.admission.end_run("a")
    cache.pass_s(1, share_lost=1.0)
    assert cache.call("b")  # alone, it need not wait for room that there will not be


def test_without_whom_no_less_is_held_is_not_parked():
    cache = Cache()
    cache.begin("a", 60)
    cache.begin("b", 60)
    assert cache.call("c", "a")  # reads what a reads
    cache.admission.set_working_set("d", blocks_of("a", 60))
    assert cache.call("d")  # and so does this one, as another agent
    cache.pass_s(60, share_lost=1.0)
    assert cache.throttled == ["b"]


def test_who_reads_what_others_hold_need_not_wait():
    cache = thrashing("a", "b", "c", "d")
    assert cache.call("e", "a", "b")
    assert not cache.call("c")
    assert cache.call("f", "a", "b")  # nor behind who does not


def test_what_many_read_counts_once():
    cache = Cache()
    for run in "abc":
        cache.begin(run, 10, run, "shared")
    cache.admission.set_working_set("shared", blocks_of("a", 20))  # and starts like what a reads
    assert cache.admission.num_active_blocks == 10 + 10 + 20
    cache.admission.end_run("a")
    assert cache.admission.num_active_blocks == 10 + 10 + 20
    cache.admission.end_run("b")
    assert cache.admission.num_active_blocks == 10 + 20
    cache.admission.check_integrity()


def test_who_waits_longest_goes_on_first_though_less_would_fit():
    cache = thrashing("a", "b", "c", "d")
    assert not cache.call("d")
    assert not cache.call("c")
    cache.admission.set_working_set("c", blocks_of("c", 10))
    cache.called("a")
    cache.admission.end_run("a")
    cache.admission.set_working_set("b", blocks_of("b", 60))
    cache.pass_s(1)
    assert cache.admission.num_queued == 2  # there is room for c, and d is before it
    cache.admission.set_working_set("b", blocks_of("b", 30))
    cache.pass_s(1)
    assert cache.resumed[-2:] == ["d", "c"]
    assert cache.admission.num_queued == 0


def test_who_waits_long_gives_its_place_up():
    cache = thrashing("a", "b", "c", "d")
    assert not cache.call("d")
    cache.called("b")
    cache.pass_s(1, share_lost=0.1)
    assert cache.admission.is_throttled("d")  # most waits are not over sooner
    cache.pass_s(1, share_lost=0.1)
    assert cache.throttled[-1] == "b"
    assert not cache.admission.is_throttled("d")
    assert not cache.call("b")


def test_what_is_long_follows_from_how_long_runs_wait():
    cache = thrashing("a", "b", "c", "d")
    for _ in range(40):
        cache.called("b")
        cache.pass_s(4, share_lost=0.1)
        assert cache.call("b")
    assert not cache.call("d")
    cache.called("b")
    cache.pass_s(2, share_lost=0.1)
    assert cache.admission.is_throttled("d")


def test_who_had_its_turn_is_swapped_for_who_waits():
    cache = thrashing("a", "b", "c", "d")
    assert not cache.call("d")
    cache.pass_s(int(admission_control.MIN_SLICE_S), share_lost=0.1)
    assert cache.admission.is_throttled("d")
    cache.pass_s(1, share_lost=0.1)
    assert cache.throttled[-1] == "a"  # active longest
    assert cache.resumed[-1] == "d"


def test_a_turn_is_the_longer_the_more_the_swap_costs():
    cache = thrashing("a", "b", "c", "d")
    cache.admission.set_working_set("d", blocks_of("d", 50))
    assert not cache.call("d")
    cache.pass_s(int(admission_control.SLICE_FACTOR * 50 * BLOCK_S), share_lost=0.1)
    assert cache.admission.is_throttled("d")
    cache.pass_s(1, share_lost=0.1)
    assert not cache.admission.is_throttled("d")


def test_nobody_waits_where_few_would_decode_longer_than_is_lost():
    cache = Cache()
    for run in "abcd":
        cache.begin(run, 60)  # three times what fits: without two of three, steps take as long
    cache.pass_s(200, share_lost=0.4, share_decoding=0.6)
    assert not cache.throttled
    cache.pass_s(100, share_lost=0.9, share_decoding=0.1)
    assert cache.throttled


def test_all_go_on_where_it_shows_that_few_decode_for_longer():
    cache = thrashing("a", "b", "c", "d")
    assert not cache.call("c")
    assert not cache.call("d")
    cache.admission.set_working_set("c", blocks_of("c", 200))
    cache.pass_s(3, share_lost=0.1, share_decoding=0.0)
    assert cache.admission.num_queued == 2
    cache.pass_s(200, share_lost=0.9, share_decoding=1.0)
    assert cache.resumed[-2:] == ["c", "d"]


def test_who_needs_no_room_does_not_wait_behind_who_does():
    cache = thrashing("a", "b", "c", "d")
    assert not cache.call("d")
    assert cache.call("new")
    cache.admission.set_working_set("new", blocks_of("new", 30))
    cache.pass_s(1, share_lost=1.0)
    assert cache.throttled[-1] == "new"  # now it does


def test_nobody_makes_way_where_that_is_not_enough():
    cache = thrashing("a", "b", "c", "d")
    cache.admission.set_working_set("d", blocks_of("d", 70))
    turn_s = int(admission_control.SLICE_FACTOR * 70 * BLOCK_S)
    assert not cache.call("d")
    cache.admission.end_run("b")
    cache.pass_s(turn_s // 2, share_lost=0.1)
    cache.begin("new", 30)
    cache.pass_s(turn_s // 2 + 2, share_lost=0.1)  # that is the end of a's turn, not of its own
    assert cache.throttled == ["d", "c"]
    cache.pass_s(turn_s // 2, share_lost=0.1)
    assert cache.throttled == ["d", "c", "a", "new"]
    assert cache.resumed[-1] == "d"


def test_a_higher_priority_need_not_wait():
    cache = thrashing("a", "b", "c", "d")
    assert not cache.call("c")
    assert not cache.call("d", priority=-1)
    assert cache.call("d", priority=1)  # before c, and in the place of a lower one
    assert cache.throttled == ["d", "c", "a"]
    assert cache.call("b", priority=1)
    cache.admission.set_working_set("e", blocks_of("e", 30))
    assert not cache.call("e", priority=1)  # nobody is lower; those of its own have their turn
    cache.pass_s(1, share_lost=0.1)
    assert cache.throttled == ["d", "c", "a"]
    cache.pass_s(int(admission_control.MIN_SLICE_S), share_lost=0.1)
    assert cache.resumed[-1] == "e"
    cache.admission.end_run("b")
    cache.pass_s(1, share_lost=0.1)
    assert not cache.admission.is_throttled("d")  # back at once, before those of lower priority
    assert cache.admission.is_throttled("c")


def test_room_comes_back_once_little_is_lost():
    cache = thrashing("a", "b", "c", "d")
    for run in "abcd":
        cache.call(run)
    assert cache.admission.num_queued == 2
    cache.pass_s(200)
    assert all(cache.call(run) for run in "abcd")
    assert cache.admission.num_active_blocks == 120


def test_what_a_run_reads_first_after_a_wait_is_no_loss():
    cache = thrashing("a", "b", "c", "d")
    assert cache.lost("a", 30) == 30
    assert cache.lost("a", 30, num_found=20) == 10
    assert not cache.call("d")
    cache.admission.end_run("a")
    cache.pass_s(1)
    assert cache.resumed[-1] == "d"
    assert cache.lost("d", 30) == 0  # others had its place
    assert cache.lost("d", 30) == 30


def test_what_was_never_read_is_no_loss():
    cache = Cache()
    assert cache.lost("a", 30) == 0
    cache.begin("a", 30)
    assert cache.lost("a", 50, num_found=30) == 0
    assert cache.lost("a", 50, num_found=10) == 20


def traces(admission):
    return {k: v for k, v in vars(admission).items() if isinstance(v, dict | set) and v}


def test_runs_and_owners_leave_no_trace():
    cache = thrashing("a", "b", "c", "d")
    for run in "cd":
        assert not cache.call(run)  # a second call each
    for run in "ac":
        cache.admission.end_run(run)  # in the middle of calls
        cache.admission.add_readers(run, ["late"])  # as a call ends whose run is over
        cache.called(run)
    assert not cache.admission.is_throttled("c")
    cache.call("a")  # another of that name
    for run in "abcd":
        while run in cache.admission._num_calls:
            cache.called(run)
        cache.admission.end_run(run)
        cache.admission.check_integrity()
    assert cache.admission.num_active_blocks == cache.admission.num_queued == 0
    for reader in ("a", "b", "c", "d", "many"):
        cache.admission.remove_working_set(reader)
    assert not traces(cache.admission)


def test_a_call_that_ends_after_its_run_leaves_no_trace():
    cache = Cache()
    cache.begin("a", 30)
    cache.admission.end_run("a")
    cache.admission.add_readers("a", ["late"])
    cache.called("a")
    cache.admission.remove_working_set("a")
    assert not traces(cache.admission)


def test_what_a_run_lets_go_of_is_held_no_longer():
    cache = Cache()
    cache.begin("a", 30, "a", "shared")
    cache.admission.set_working_set("shared", blocks_of("b", 20))
    assert cache.call("b", "shared")
    cache.admission.remove_reader("a", "shared")
    assert cache.admission.num_active_blocks == 50
    cache.admission.remove_reader("a", "a")
    assert cache.admission.num_active_blocks == 20
    cache.admission.check_integrity()


class Lives(RuleBasedStateMachine):
    """Random runs. Whoever is held back goes on by itself, once enough time has passed."""

    runs = st.sampled_from("abcdef")
    readers = st.sampled_from(["a", "b", "c", "d", "x", "y"])

    def __init__(self):
        super().__init__()
        self.cache = thrashing("a", "b", "c", "d")  # two of them are throttled
        self.admission = self.cache.admission
        self.calls = dict.fromkeys("abcd", 1) | dict.fromkeys("ef", 0)

    @rule(run=runs, others=st.sets(readers, max_size=2))
    def call(self, run, others):
        self.cache.call(run, *sorted({run, *others}))
        self.calls[run] += 1

    @rule(run=runs)
    def called(self, run):
        if self.calls[run]:
            self.cache.called(run)
            self.calls[run] -= 1

    @rule(run=runs)
    def end(self, run):
        self.admission.end_run(run)

    @rule(run=runs, reader=readers)
    def join(self, run, reader):
        self.admission.add_readers(run, [reader])

    @rule(run=runs, reader=readers)
    def leave(self, run, reader):
        self.admission.remove_reader(run, reader)

    @rule(reader=readers, like=readers, num_blocks=st.integers(10, 80))
    def read(self, reader, like, num_blocks):
        self.admission.set_working_set(reader, blocks_of(like, num_blocks))

    @rule(reader=readers)
    def forget(self, reader):
        self.admission.remove_working_set(reader)

    @rule(reader=readers, num_blocks=st.integers(0, 80), num_found=st.integers(0, 80))
    def find(self, reader, num_blocks, num_found):
        assert 0 <= self.cache.lost(reader, num_blocks, num_found) <= num_blocks

    @rule(seconds=st.integers(1, 60), share_lost=st.sampled_from([0.0, 0.1, 1.0, 1.0]))
    def pass_s(self, seconds, share_lost):
        self.cache.pass_s(seconds, share_lost)

    @invariant()
    def is_whole(self):
        self.admission.check_integrity()
        held = [run for run in self.calls if self.admission.is_throttled(run)]
        assert len(held) == self.admission.num_queued
        assert all(self.calls[run] for run in held)

    def teardown(self):
        waiting = [run for run in self.calls if self.admission.is_throttled(run)]
        self.cache.resumed.clear()
        self.cache.pass_s(500, share_lost=1.0)  # in which no call ends
        assert set(waiting) <= set(self.cache.resumed)
        for run, num_calls in self.calls.items():
            for _ in range(num_calls):
                self.cache.called(run)
            self.admission.end_run(run)
        for reader in ("a", "b", "c", "d", "e", "f", "x", "y", "many"):
            self.admission.remove_working_set(reader)
        assert not traces(self.admission)


Lives.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestLives = Lives.TestCase
