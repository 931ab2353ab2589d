"""Many runs at once: each agent counts as the soonest that any run says."""

import random

import pytest

from kvflow_jax.cache.reuse_tracker import NEVER_STEPS, THROTTLED_STEPS, UNKNOWN_STEPS
from kvflow_jax.control.run_tracker import MAX_BRANCHES, MIN_QUIET_S, QUIET, RUN_TTL_S, RunTracker
from kvflow_jax.workflow.workflow import Workflow


def ring(agents="abc"):
    workflow = Workflow()
    for agent, following in zip(agents, agents[1:] + agents[0], strict=True):
        workflow.edge(agent, following)
    return workflow.freeze()


def call(progress, run, agent, overrides=None):
    progress.start(run, agent)
    progress.finish(run, agent, is_done=True, overrides=overrides or {})


def test_an_agent_is_as_near_as_the_nearest_run_has_it():
    progress = RunTracker()
    first = progress.run(("", "one"), ring(), 0.0)
    second = progress.run(("", "two"), ring(), 0.0)
    progress.start(first, "a")
    call(progress, second, "a")
    progress.start(second, "b")
    assert [progress.steps(("", agent)) for agent in "abc"] == [0, 0, 1]
    progress.end(("", "one"))
    assert [progress.steps(("", agent)) for agent in "abc"] == [2, 0, 1]
    progress.end(("", "two"))
    assert progress.steps(("", "a")) == UNKNOWN_STEPS
    assert progress.steps(("someone else's", "a")) == UNKNOWN_STEPS


def test_changes_name_only_what_the_moved_run_touches():
    progress = RunTracker()
    runs = [progress.run(("", str(i)), ring(), 0.0) for i in range(20)]
    for run in runs[:-1]:
        progress.start(run, "a")
    progress.changes.clear()
    progress.start(runs[-1], "a")  # as all others have it already
    assert set(progress.changes.values()) <= {0.0, 1.0, 2.0}
    call(progress, progress.run(("other", "x"), ring(), 0.0), "a")
    assert {key[1] for key in progress.changes if key[1] == "other"} == {"other"}


def test_what_a_caller_says_goes_before_the_graph_until_the_agent_runs():
    progress = RunTracker()
    run = progress.run(("", "w"), ring("abcd"), 0.0)
    call(progress, run, "a", overrides={"d": 0.0, "x": 3.0})
    assert progress.steps(("", "d")) == 0
    assert progress.steps(("", "x")) == 3
    call(progress, run, "d")
    assert progress.steps(("", "x")) == UNKNOWN_STEPS


def test_less_likely_branches_come_after_and_too_many_are_not_prepared_for():
    workflow = Workflow()
    for i, chance in enumerate((0.4, 0.3, 0.1, 0.1, 0.05, 0.05)):
        workflow.edge("a", f"b{i}", conditional=True, probability=chance)
    progress = RunTracker()
    run = progress.run(("", "w"), workflow.freeze(), 0.0)
    progress.start(run, "a")
    steps = [progress.steps(("", f"b{i}")) for i in range(6)]
    assert steps == sorted(steps)
    assert all(1 <= one < 2 for one in steps)
    assert sum(one % 1 < 0.5 for one in steps) == MAX_BRANCHES
    progress.finish(run, "a", is_done=True, overrides={})
    call(progress, run, "b1")
    assert progress.steps(("", "b0")) == UNKNOWN_STEPS  # it is over: nothing follows


def test_the_road_not_taken_is_never():
    workflow = Workflow().edge("a", "b", True).edge("a", "c", True).edge("b", "d").edge("c", "e")
    progress = RunTracker()
    run = progress.run(("", "w"), workflow.freeze(), 0.0)
    call(progress, run, "a")
    progress.start(run, "b")
    assert progress.steps(("", "d")) == 1
    assert progress.steps(("", "e")) == NEVER_STEPS


def test_an_aborted_call_may_come_again():
    progress = RunTracker()
    run = progress.run(("", "w"), ring(), 0.0)
    progress.start(run, "a")
    progress.finish(run, "a", is_done=False, overrides={"c": 0.0})
    assert [progress.steps(("", agent)) for agent in "abc"] == [0, 1, 2]


def test_a_call_that_ends_after_its_run_says_nothing():
    progress = RunTracker()
    run = progress.run(("", "w"), ring(), 0.0)
    progress.start(run, "a")
    progress.end(("", "w"))
    progress.finish(run, "a", is_done=True, overrides={"x": 2.0})
    assert progress.steps(("", "x")) == UNKNOWN_STEPS
    assert not run.values


def test_a_run_that_has_begun_says_who_may_start():
    progress = RunTracker()
    progress.run(("", "w"), ring(), 0.0)
    assert [progress.steps(("", agent)) for agent in "abc"] == [0, 1, 2]


def test_runs_heard_of_by_other_ways_than_requests_hold_no_other_back():
    progress = RunTracker()
    live = progress.run(("", "live"), ring(), 0.0)
    progress.run(("", "dead"), ring(), 0.0)
    progress.advance(live, ["a"], [])
    progress.touch(live, RUN_TTL_S)
    progress.expire(RUN_TTL_S + 1)
    assert progress.find(("", "live")) is live
    assert progress.find(("", "dead")) is None


def test_other_conversations_of_a_running_agent_are_not_due():
    progress = RunTracker()
    run = progress.run(("", "w"), ring(), 0.0)
    for session in "xy":
        progress.attach(run, "a", session)
    progress.start(run, "a")
    assert progress.changes["x"] == progress.changes["y"] > 1
    assert progress.steps(("", "a")) == 0
    progress.detach(run, "a", "x")
    progress.detach(run, "a", "y")
    assert not run.readers


def test_a_graph_that_comes_late_finds_the_calls_in_progress():
    progress = RunTracker()
    run = progress.run(("", "w"), None, 0.0)
    progress.start(run, "b")
    assert progress.steps(("", "c")) == UNKNOWN_STEPS
    progress.run(("", "w"), ring(), 1.0)
    progress.start(run, "x")
    assert progress.steps(("", "c")) == 1


def test_runs_expire_but_not_while_they_call():
    progress = RunTracker()
    idle = progress.run(("", "idle"), ring(), 0.0)
    call(progress, idle, "a")
    busy = progress.run(("", "busy"), ring(), 0.0)
    progress.start(busy, "a")
    progress.expire(RUN_TTL_S + 1)
    assert progress.find(("", "idle")) is None
    assert progress.find(("", "busy")) is busy


@pytest.mark.parametrize("seed", range(20))
def test_minima_over_random_runs_are_those_of_all_values(seed):
    rng = random.Random(seed)
    progress, told = RunTracker(), {}
    graphs = [ring("abc"), ring("cbad"), Workflow().edge("a", "b", True).edge("a", "c", True)]
    graphs[2] = graphs[2].edge("b", "a").edge("c", "a").freeze()
    for now in range(200):
        run = progress.run(("", str(rng.randint(0, 5))), rng.choice(graphs), float(now))
        agent = rng.choice("abcdx")
        if rng.random() < 0.5 or not run.calls:
            progress.start(run, agent)
        else:
            agent = rng.choice(sorted(run.calls))
            progress.finish(run, agent, is_done=rng.random() < 0.8, overrides={})
        if rng.random() < 0.05:
            progress.end(run.key)
        told.update(progress.changes)
        progress.changes.clear()
        for agent in "abcdx":
            values = [
                found.values[agent]
                for i in range(6)
                if (found := progress.find(("", str(i)))) and agent in found.values
            ]
            expected = min(values, default=UNKNOWN_STEPS)
            assert progress.steps(("", agent)) == expected
            assert told.get(("agent", "", agent), UNKNOWN_STEPS) == expected


def test_a_call_that_waits_for_its_runs_turn_reads_no_sooner_than_the_rest():
    progress = RunTracker()
    run = progress.run(("", "w"), ring(), 0.0)
    progress.start(run, "a")
    progress.throttle(run.key, is_throttled=True)
    assert [progress.steps(("", agent)) for agent in "abc"] == [
        0,
        THROTTLED_STEPS + 1,
        THROTTLED_STEPS + 2,
    ]
    for agent in "bx":  # the graph knows no x
        progress.start(run, agent)
        progress.throttle_call(run, agent)
    assert [progress.steps(("", agent)) for agent in "bx"] == [THROTTLED_STEPS, THROTTLED_STEPS]
    progress.start(run, "a")
    progress.throttle_call(run, "a")
    assert progress.steps(("", "a")) == 0  # its other call goes on
    progress.finish(run, "a", is_done=True, overrides={})
    assert progress.steps(("", "a")) == THROTTLED_STEPS
    progress.finish(run, "x", is_done=False, overrides={})
    assert progress.steps(("", "x")) == UNKNOWN_STEPS
    progress.throttle(run.key, is_throttled=False)
    assert [progress.steps(("", agent)) for agent in "ab"] == [0, 0]


def test_a_run_that_nobody_goes_on_with_counts_as_far():
    progress = RunTracker(notes_quiet=True)
    left = progress.run(("", "left"), ring(), 0.0)
    call(progress, left, "a")
    progress.touch(left, 0.0)
    now = 0.0
    while now < MIN_QUIET_S:
        progress.expire(now)
        assert progress.steps(("", "b")) == 0
        now += 1.0
    progress.expire(now + 1.0)
    assert progress.steps(("", "b")) == THROTTLED_STEPS
    progress.run(left.key, None, now + 1.0)  # it calls
    assert progress.steps(("", "b")) == 0
    progress.start(left, "b")
    progress.expire(now + 100.0)
    assert progress.steps(("", "c")) == 1  # whoever is in a call is not quiet


def test_where_waits_are_long_a_run_is_quiet_later():
    progress = RunTracker(notes_quiet=True)
    run = progress.run(("", "w"), ring(), 0.0)
    now = 0.0
    for _ in range(40):
        progress.run(run.key, None, now)
        call(progress, run, "a")
        progress.touch(run, now)
        now += 30.0
        progress.run(run.key, None, now)
    progress.expire(now + 2 * MIN_QUIET_S)
    assert progress.steps(("", "b")) < THROTTLED_STEPS
    progress.expire(now + 2 * QUIET * 30.0)
    assert progress.steps(("", "b")) >= THROTTLED_STEPS
