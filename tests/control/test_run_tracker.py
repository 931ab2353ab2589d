"""Many runs at once: each agent counts as the soonest that any run says."""

import random

import pytest

from kvflow_jax.cache.reuse_tracker import NEVER_STEPS, THROTTLED_STEPS, UNKNOWN_STEPS
from kvflow_jax.control.run_tracker import (
    MAX_BRANCHES,
    MIN_QUIET_S,
    QUIET_FACTOR,
    RUN_TTL_S,
    RunTracker,
)
from kvflow_jax.workflow.workflow import Workflow


def ring(agents="abc"):
    workflow = Workflow()
    for agent, following in zip(agents, agents[1:] + agents[0], strict=True):
        workflow.edge(agent, following)
    return workflow.freeze()


def call(run_tracker, run, agent, overrides=None):
    run_tracker.start(run, agent)
    run_tracker.finish(run, agent, is_done=True, overrides=overrides or {})


def test_an_agent_is_as_near_as_the_nearest_run_has_it():
    run_tracker = RunTracker()
    first = run_tracker.get_or_begin(("", "one"), ring(), 0.0)
    second = run_tracker.get_or_begin(("", "two"), ring(), 0.0)
    run_tracker.start(first, "a")
    call(run_tracker, second, "a")
    run_tracker.start(second, "b")
    assert [run_tracker.steps(("", agent)) for agent in "abc"] == [0, 0, 1]
    run_tracker.end(("", "one"))
    assert [run_tracker.steps(("", agent)) for agent in "abc"] == [2, 0, 1]
    run_tracker.end(("", "two"))
    assert run_tracker.steps(("", "a")) == UNKNOWN_STEPS
    assert run_tracker.steps(("someone else's", "a")) == UNKNOWN_STEPS


def test_changes_name_only_what_the_moved_run_touches():
    run_tracker = RunTracker()
    runs = [run_tracker.get_or_begin(("", str(i)), ring(), 0.0) for i in range(20)]
    for run in runs[:-1]:
        run_tracker.start(run, "a")
    run_tracker.changes.clear()
    run_tracker.start(runs[-1], "a")  # as all others have it already
    assert set(run_tracker.changes.values()) <= {0.0, 1.0, 2.0}
    call(run_tracker, run_tracker.get_or_begin(("other", "x"), ring(), 0.0), "a")
    assert {key[1] for key in run_tracker.changes if key[1] == "other"} == {"other"}


def test_what_a_caller_says_goes_before_the_graph_until_the_agent_runs():
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(("", "w"), ring("abcd"), 0.0)
    call(run_tracker, run, "a", overrides={"d": 0.0, "x": 3.0})
    assert run_tracker.steps(("", "d")) == 0
    assert run_tracker.steps(("", "x")) == 3
    call(run_tracker, run, "d")
    assert run_tracker.steps(("", "x")) == UNKNOWN_STEPS


def test_less_likely_branches_come_after_and_too_many_are_not_prepared_for():
    workflow = Workflow()
    for i, chance in enumerate((0.4, 0.3, 0.1, 0.1, 0.05, 0.05)):
        workflow.edge("a", f"b{i}", conditional=True, probability=chance)
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(("", "w"), workflow.freeze(), 0.0)
    run_tracker.start(run, "a")
    steps = [run_tracker.steps(("", f"b{i}")) for i in range(6)]
    assert steps == sorted(steps)
    assert all(1 <= one < 2 for one in steps)
    assert sum(one % 1 < 0.5 for one in steps) == MAX_BRANCHES
    run_tracker.finish(run, "a", is_done=True, overrides={})
    call(run_tracker, run, "b1")
    assert run_tracker.steps(("", "b0")) == UNKNOWN_STEPS  # it is over: nothing follows


def test_the_road_not_taken_is_never():
    workflow = Workflow().edge("a", "b", True).edge("a", "c", True).edge("b", "d").edge("c", "e")
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(("", "w"), workflow.freeze(), 0.0)
    call(run_tracker, run, "a")
    run_tracker.start(run, "b")
    assert run_tracker.steps(("", "d")) == 1
    assert run_tracker.steps(("", "e")) == NEVER_STEPS


def test_an_aborted_call_may_come_again():
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(("", "w"), ring(), 0.0)
    run_tracker.start(run, "a")
    run_tracker.finish(run, "a", is_done=False, overrides={"c": 0.0})
    assert [run_tracker.steps(("", agent)) for agent in "abc"] == [0, 1, 2]


def test_a_call_that_ends_after_its_run_says_nothing():
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(("", "w"), ring(), 0.0)
    run_tracker.start(run, "a")
    run_tracker.end(("", "w"))
    run_tracker.finish(run, "a", is_done=True, overrides={"x": 2.0})
    assert run_tracker.steps(("", "x")) == UNKNOWN_STEPS
    assert not run.agent_steps


def test_a_run_that_has_begun_says_who_may_start():
    run_tracker = RunTracker()
    run_tracker.get_or_begin(("", "w"), ring(), 0.0)
    assert [run_tracker.steps(("", agent)) for agent in "abc"] == [0, 1, 2]


def test_runs_heard_of_by_other_ways_than_requests_hold_no_other_back():
    run_tracker = RunTracker()
    live = run_tracker.get_or_begin(("", "live"), ring(), 0.0)
    run_tracker.get_or_begin(("", "dead"), ring(), 0.0)
    run_tracker.advance(live, ["a"], [])
    run_tracker.touch(live, RUN_TTL_S)
    run_tracker.expire(RUN_TTL_S + 1)
    assert run_tracker.find(("", "live")) is live
    assert run_tracker.find(("", "dead")) is None


def test_other_conversations_of_a_running_agent_are_not_due():
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(("", "w"), ring(), 0.0)
    for session in "xy":
        run_tracker.attach_reader(run, "a", session)
    run_tracker.start(run, "a")
    assert run_tracker.changes["x"] == run_tracker.changes["y"] > 1
    assert run_tracker.steps(("", "a")) == 0
    run_tracker.detach_reader(run, "a", "x")
    run_tracker.detach_reader(run, "a", "y")
    assert not run.readers


def test_a_graph_that_comes_late_finds_the_calls_in_progress():
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(("", "w"), None, 0.0)
    run_tracker.start(run, "b")
    assert run_tracker.steps(("", "c")) == UNKNOWN_STEPS
    run_tracker.get_or_begin(("", "w"), ring(), 1.0)
    run_tracker.start(run, "x")
    assert run_tracker.steps(("", "c")) == 1


def test_runs_expire_but_not_while_they_call():
    run_tracker = RunTracker()
    idle = run_tracker.get_or_begin(("", "idle"), ring(), 0.0)
    call(run_tracker, idle, "a")
    busy = run_tracker.get_or_begin(("", "busy"), ring(), 0.0)
    run_tracker.start(busy, "a")
    run_tracker.expire(RUN_TTL_S + 1)
    assert run_tracker.find(("", "idle")) is None
    assert run_tracker.find(("", "busy")) is busy


@pytest.mark.parametrize("seed", range(20))
def test_minima_over_random_runs_are_those_of_all_values(seed):
    rng = random.Random(seed)
    run_tracker, published = RunTracker(), {}
    graphs = [ring("abc"), ring("cbad"), Workflow().edge("a", "b", True).edge("a", "c", True)]
    graphs[2] = graphs[2].edge("b", "a").edge("c", "a").freeze()
    for now in range(200):
        run = run_tracker.get_or_begin(("", str(rng.randint(0, 5))), rng.choice(graphs), float(now))
        agent = rng.choice("abcdx")
        if rng.random() < 0.5 or not run.calls:
            run_tracker.start(run, agent)
        else:
            agent = rng.choice(sorted(run.calls))
            run_tracker.finish(run, agent, is_done=rng.random() < 0.8, overrides={})
        if rng.random() < 0.05:
            run_tracker.end(run.key)
        published.update(run_tracker.changes)
        run_tracker.changes.clear()
        for agent in "abcdx":
            values = [
                found.agent_steps[agent]
                for i in range(6)
                if (found := run_tracker.find(("", str(i)))) and agent in found.agent_steps
            ]
            expected = min(values, default=UNKNOWN_STEPS)
            assert run_tracker.steps(("", agent)) == expected
            assert published.get(("agent", "", agent), UNKNOWN_STEPS) == expected


def test_a_call_that_waits_for_its_runs_turn_reads_no_sooner_than_the_rest():
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(("", "w"), ring(), 0.0)
    run_tracker.start(run, "a")
    run_tracker.set_throttled(run.key, is_throttled=True)
    assert [run_tracker.steps(("", agent)) for agent in "abc"] == [
        0,
        THROTTLED_STEPS + 1,
        THROTTLED_STEPS + 2,
    ]
    for agent in "bx":  # the graph knows no x
        run_tracker.start(run, agent)
        run_tracker.throttle_call(run, agent)
    assert [run_tracker.steps(("", agent)) for agent in "bx"] == [THROTTLED_STEPS, THROTTLED_STEPS]
    run_tracker.start(run, "a")
    run_tracker.throttle_call(run, "a")
    assert run_tracker.steps(("", "a")) == 0  # its other call goes on
    run_tracker.finish(run, "a", is_done=True, overrides={})
    assert run_tracker.steps(("", "a")) == THROTTLED_STEPS
    run_tracker.finish(run, "x", is_done=False, overrides={})
    assert run_tracker.steps(("", "x")) == UNKNOWN_STEPS
    run_tracker.set_throttled(run.key, is_throttled=False)
    assert [run_tracker.steps(("", agent)) for agent in "ab"] == [0, 0]


def test_a_run_that_nobody_goes_on_with_counts_as_far():
    run_tracker = RunTracker(demotes_quiet_runs=True)
    left = run_tracker.get_or_begin(("", "left"), ring(), 0.0)
    call(run_tracker, left, "a")
    run_tracker.touch(left, 0.0)
    now = 0.0
    while now < MIN_QUIET_S:
        run_tracker.expire(now)
        assert run_tracker.steps(("", "b")) == 0
        now += 1.0
    run_tracker.expire(now + 1.0)
    assert run_tracker.steps(("", "b")) == THROTTLED_STEPS
    run_tracker.get_or_begin(left.key, None, now + 1.0)  # it calls
    assert run_tracker.steps(("", "b")) == 0
    run_tracker.start(left, "b")
    run_tracker.expire(now + 100.0)
    assert run_tracker.steps(("", "c")) == 1  # whoever is in a call is not quiet


def test_where_waits_are_long_a_run_is_quiet_later():
    run_tracker = RunTracker(demotes_quiet_runs=True)
    run = run_tracker.get_or_begin(("", "w"), ring(), 0.0)
    now = 0.0
    for _ in range(40):
        run_tracker.get_or_begin(run.key, None, now)
        call(run_tracker, run, "a")
        run_tracker.touch(run, now)
        now += 30.0
        run_tracker.get_or_begin(run.key, None, now)
    run_tracker.expire(now + 2 * MIN_QUIET_S)
    assert run_tracker.steps(("", "b")) < THROTTLED_STEPS
    run_tracker.expire(now + 2 * QUIET_FACTOR * 30.0)
    assert run_tracker.steps(("", "b")) >= THROTTLED_STEPS
