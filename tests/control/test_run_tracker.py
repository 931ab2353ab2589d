"""Progress of many runs: an agent has the least of its steps over all runs."""

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


def test_an_agent_has_the_least_steps_of_all_runs():
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
    assert run_tracker.steps(("other tenant", "a")) == UNKNOWN_STEPS


def test_changes_name_only_agents_of_the_run_that_moved():
    run_tracker = RunTracker()
    runs = [run_tracker.get_or_begin(("", str(i)), ring(), 0.0) for i in range(20)]
    for run in runs[:-1]:
        run_tracker.start(run, "a")
    run_tracker.changes.clear()
    run_tracker.start(runs[-1], "a")  # as all other runs have it already
    assert set(run_tracker.changes.values()) <= {0.0, 1.0, 2.0}
    call(run_tracker, run_tracker.get_or_begin(("other", "x"), ring(), 0.0), "a")
    assert {key[1] for key in run_tracker.changes if key[1] == "other"} == {"other"}


def test_overrides_precede_the_graph_until_their_agent_runs():
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(("", "w"), ring("abcd"), 0.0)
    call(run_tracker, run, "a", overrides={"d": 0.0, "x": 3.0})
    assert run_tracker.steps(("", "d")) == 0
    assert run_tracker.steps(("", "x")) == 3
    call(run_tracker, run, "d")
    assert run_tracker.steps(("", "x")) == UNKNOWN_STEPS


def test_branches_are_ordered_by_probability_and_few_are_prefetched():
    workflow = Workflow()
    for i, chance in enumerate((0.4, 0.3, 0.1, 0.1, 0.05, 0.05)):
        workflow.edge("a", f"b{i}", conditional=True, probability=chance)
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(("", "w"), workflow.freeze(), 0.0)
    run_tracker.start(run, "a")
    steps = [run_tracker.steps(("", f"b{i}")) for i in range(6)]
    assert steps == sorted(steps)
    assert all(1 <= value < 2 for value in steps)
    assert sum(value % 1 < 0.5 for value in steps) == MAX_BRANCHES
    run_tracker.finish(run, "a", is_done=True, overrides={})
    call(run_tracker, run, "b1")
    assert run_tracker.steps(("", "b0")) == UNKNOWN_STEPS  # it is over: nothing follows


def test_a_branch_that_was_not_taken_never_runs():
    workflow = Workflow().edge("a", "b", True).edge("a", "c", True).edge("b", "d").edge("c", "e")
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(("", "w"), workflow.freeze(), 0.0)
    call(run_tracker, run, "a")
    run_tracker.start(run, "b")
    assert run_tracker.steps(("", "d")) == 1
    assert run_tracker.steps(("", "e")) == NEVER_STEPS


def test_an_aborted_call_may_be_repeated():
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(("", "w"), ring(), 0.0)
    run_tracker.start(run, "a")
    run_tracker.finish(run, "a", is_done=False, overrides={"c": 0.0})
    assert [run_tracker.steps(("", agent)) for agent in "abc"] == [0, 1, 2]


def test_a_call_that_ends_after_its_run_changes_nothing():
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(("", "w"), ring(), 0.0)
    run_tracker.start(run, "a")
    run_tracker.end(("", "w"))
    run_tracker.finish(run, "a", is_done=True, overrides={"x": 2.0})
    assert run_tracker.steps(("", "x")) == UNKNOWN_STEPS
    assert not run.agent_steps


def test_a_run_has_steps_before_its_first_call():
    run_tracker = RunTracker()
    run_tracker.get_or_begin(("", "w"), ring(), 0.0)
    assert [run_tracker.steps(("", agent)) for agent in "abc"] == [0, 1, 2]


def test_a_run_whose_progress_is_reported_delays_no_other_expiry():
    run_tracker = RunTracker()
    live = run_tracker.get_or_begin(("", "live"), ring(), 0.0)
    run_tracker.get_or_begin(("", "dead"), ring(), 0.0)
    run_tracker.advance(live, ["a"], [])
    run_tracker.touch(live, RUN_TTL_S)
    run_tracker.expire(RUN_TTL_S + 1)
    assert run_tracker.find(("", "live")) is live
    assert run_tracker.find(("", "dead")) is None


def test_other_conversations_of_a_running_agent_wait_for_its_next_call():
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


def test_a_graph_that_comes_late_takes_in_the_calls_in_progress():
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(("", "w"), None, 0.0)
    run_tracker.start(run, "b")
    assert run_tracker.steps(("", "c")) == UNKNOWN_STEPS
    run_tracker.get_or_begin(("", "w"), ring(), 1.0)
    run_tracker.start(run, "x")
    assert run_tracker.steps(("", "c")) == 1


def test_runs_expire_unless_a_call_is_in_progress():
    run_tracker = RunTracker()
    idle = run_tracker.get_or_begin(("", "idle"), ring(), 0.0)
    call(run_tracker, idle, "a")
    busy = run_tracker.get_or_begin(("", "busy"), ring(), 0.0)
    run_tracker.start(busy, "a")
    run_tracker.expire(RUN_TTL_S + 1)
    assert run_tracker.find(("", "idle")) is None
    assert run_tracker.find(("", "busy")) is busy


@pytest.mark.parametrize("seed", range(20))
def test_steps_and_changes_over_random_runs_are_the_minima_of_all_runs(seed):
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


def test_a_throttled_call_has_the_steps_of_a_throttled_run():
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


def test_a_quiet_run_is_demoted_until_it_calls_again():
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
    assert run_tracker.steps(("", "c")) == 1  # a run with a call is not quiet


def test_a_run_is_quiet_later_where_idle_times_are_long():
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
