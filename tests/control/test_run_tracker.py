"""Progress of many runs: an agent has the least of its steps over all runs."""

import random

import pytest

from kvflow_jax.cache.next_read import NEVER, RUNNING, UNKNOWN, ReadKind, scheduled
from kvflow_jax.control import run_tracker as run_tracker_module
from kvflow_jax.control.readers import (
    RECOGNISED,
    AgentReader,
    PrefixReader,
    RunKey,
    SessionReader,
)
from kvflow_jax.control.run_tracker import (
    MAX_AGENTS_OF_RUN,
    MAX_BRANCHES,
    MAX_PREFIXES_OF_RUN,
    MIN_QUIET_S,
    QUIET_FACTOR,
    RUN_TTL_S,
    RunTracker,
)
from kvflow_jax.errors import IntegrityError
from kvflow_jax.workflow.workflow import Workflow
from tests.support.memory import traced_bytes
from tests.support.step_graphs import chain


def ring(agents="abc"):
    workflow = Workflow()
    for agent, following in zip(agents, agents[1:] + agents[0], strict=True):
        workflow.edge(agent, following)
    return workflow.freeze()


def read_of(run_tracker, agent, tenant=""):
    return run_tracker.next_read_of(AgentReader(tenant, agent))


def distances(run_tracker, agents):
    """The steps-to-execution of agents, all of which are scheduled."""
    reads = [read_of(run_tracker, agent) for agent in agents]
    assert all(read.kind == ReadKind.SCHEDULED for read in reads)
    return [read.distance for read in reads]


def call(run_tracker, run, agent, overrides=None):
    run_tracker.start_call(run, agent)
    run_tracker.finish_call(run, agent, is_done=True, overrides=overrides or {})


def test_an_agent_has_the_least_steps_of_all_runs():
    run_tracker = RunTracker()
    first = run_tracker.get_or_begin(RunKey("", "one"), ring(), 0.0)
    second = run_tracker.get_or_begin(RunKey("", "two"), ring(), 0.0)
    run_tracker.start_call(first, "a")
    call(run_tracker, second, "a")
    run_tracker.start_call(second, "b")
    assert distances(run_tracker, "abc") == [0, 0, 1]
    run_tracker.end(RunKey("", "one"))
    assert distances(run_tracker, "abc") == [2, 0, 1]
    run_tracker.end(RunKey("", "two"))
    assert read_of(run_tracker, "a") == UNKNOWN
    assert read_of(run_tracker, "a", "other tenant") == UNKNOWN


def test_changes_name_only_agents_of_the_run_that_moved():
    run_tracker = RunTracker()
    runs = [run_tracker.get_or_begin(RunKey("", str(i)), ring(), 0.0) for i in range(20)]
    for run in runs[:-1]:
        run_tracker.start_call(run, "a")
    run_tracker.drain_changes()
    run_tracker.start_call(runs[-1], "a")  # as all other runs have it already
    assert not run_tracker.drain_changes()
    call(run_tracker, run_tracker.get_or_begin(RunKey("other", "x"), ring(), 0.0), "a")
    assert {reader.tenant for reader in run_tracker.drain_changes()} == {"other"}


def test_overrides_precede_the_graph_until_their_agent_runs():
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(RunKey("", "w"), ring("abcd"), 0.0)
    call(run_tracker, run, "a", overrides={"d": scheduled(0.0), "x": scheduled(3.0)})
    assert read_of(run_tracker, "d") == scheduled(0.0)
    assert read_of(run_tracker, "x") == scheduled(3.0)
    call(run_tracker, run, "d")
    assert read_of(run_tracker, "x") == UNKNOWN


def test_branches_are_ordered_by_probability_and_few_are_prefetched():
    workflow = Workflow()
    for i, chance in enumerate((0.4, 0.3, 0.1, 0.1, 0.05, 0.05)):
        workflow.edge("a", f"b{i}", conditional=True, probability=chance)
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(RunKey("", "w"), workflow.freeze(), 0.0)
    run_tracker.start_call(run, "a")
    reads = [read_of(run_tracker, f"b{i}") for i in range(6)]
    assert reads == sorted(reads)
    assert {read.distance for read in reads} == {1.0}
    assert sum(read.is_prefetched for read in reads) == MAX_BRANCHES
    run_tracker.finish_call(run, "a", is_done=True, overrides={})
    call(run_tracker, run, "b1")
    assert read_of(run_tracker, "b0") == UNKNOWN  # it is over: nothing follows


def test_a_branch_that_is_due_takes_no_place_of_one_that_is_next():
    workflow = Workflow()
    for i in range(MAX_BRANCHES):
        workflow.edge("router", f"b{i}", conditional=True, probability=1 / MAX_BRANCHES)
        workflow.edge(f"b{i}", "router", conditional=True, probability=0.7)
        workflow.edge(f"b{i}", f"end{i}", conditional=True, probability=0.3)
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(RunKey("", "w"), workflow.freeze(), 0.0)
    call(run_tracker, run, "router")
    call(run_tracker, run, "b0")  # due: the router, or end0; next: the branches
    assert read_of(run_tracker, "router").distance == 0.0
    for i in range(MAX_BRANCHES):
        assert read_of(run_tracker, f"b{i}").is_prefetched


def test_a_run_reads_the_prefix_that_it_has_read_and_a_new_run_any():
    first, second = PrefixReader("", "a", 1), PrefixReader("", "a", 2)
    run_tracker = RunTracker()
    runs = [run_tracker.get_or_begin(RunKey("", name), ring(), 0.0) for name in ("u", "v", "new")]
    for run, prefix in zip(runs, (first, second), strict=False):
        run_tracker.start_call(run, "a", prefix)
    assert run_tracker.next_read_of(first) == run_tracker.next_read_of(second) == RUNNING
    run_tracker.finish_call(runs[0], "a", is_done=True, overrides={})
    assert run_tracker.next_read_of(first) == scheduled(2.0)
    assert read_of(run_tracker, "a") == scheduled(0.0)  # the new run begins with it
    for number in range(2, 2 + MAX_PREFIXES_OF_RUN):  # its prompts grow
        assert run_tracker.next_read_of(first).is_scheduled
        run_tracker.start_call(runs[0], "a", PrefixReader("", "a", number))
    assert run_tracker.next_read_of(first) == UNKNOWN
    run_tracker.end(RunKey("", "new"))
    assert read_of(run_tracker, "a") == UNKNOWN


def test_a_branch_that_was_not_taken_never_runs():
    workflow = Workflow().edge("a", "b", True).edge("a", "c", True).edge("b", "d").edge("c", "e")
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(RunKey("", "w"), workflow.freeze(), 0.0)
    call(run_tracker, run, "a")
    run_tracker.start_call(run, "b")
    assert read_of(run_tracker, "d") == scheduled(1.0)
    assert read_of(run_tracker, "e") == NEVER


def test_an_aborted_call_may_be_repeated():
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(RunKey("", "w"), ring(), 0.0)
    run_tracker.start_call(run, "a")
    run_tracker.finish_call(run, "a", is_done=False, overrides={"c": scheduled(0.0)})
    assert distances(run_tracker, "abc") == [0, 1, 2]


def test_a_call_that_ends_after_its_run_changes_nothing():
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(RunKey("", "w"), ring(), 0.0)
    run_tracker.start_call(run, "a")
    run_tracker.end(RunKey("", "w"))
    run_tracker.finish_call(run, "a", is_done=True, overrides={"x": scheduled(2.0)})
    assert read_of(run_tracker, "x") == UNKNOWN
    assert not run.agent_reads


def test_a_run_has_steps_before_its_first_call():
    run_tracker = RunTracker()
    run_tracker.get_or_begin(RunKey("", "w"), ring(), 0.0)
    assert distances(run_tracker, "abc") == [0, 1, 2]


def test_a_run_whose_progress_is_reported_delays_no_other_expiry():
    run_tracker = RunTracker()
    live = run_tracker.get_or_begin(RunKey("", "live"), ring(), 0.0)
    run_tracker.get_or_begin(RunKey("", "dead"), ring(), 0.0)
    run_tracker.advance(live, ["a"], [])
    run_tracker.touch(live, RUN_TTL_S)
    run_tracker.expire(RUN_TTL_S + 1)
    assert run_tracker.find(RunKey("", "live")) is live
    assert run_tracker.find(RunKey("", "dead")) is None


def test_other_conversations_of_a_running_agent_wait_for_its_next_call():
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(RunKey("", "w"), ring(), 0.0)
    sessions = [SessionReader("", name) for name in "xy"]
    for session in sessions:
        run_tracker.attach_reader(run, "a", session)
    run_tracker.start_call(run, "a")
    changes = run_tracker.drain_changes()
    assert [changes[session].distance for session in sessions] == [1.0, 1.0]
    assert not changes[sessions[0]].is_prefetched
    assert read_of(run_tracker, "a") == scheduled(0.0)
    for session in sessions:
        run_tracker.detach_reader(run, "a", session)
    assert not run.readers


def test_a_graph_that_comes_late_takes_in_the_calls_in_progress():
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(RunKey("", "w"), None, 0.0)
    run_tracker.start_call(run, "b")
    assert read_of(run_tracker, "c") == UNKNOWN
    run_tracker.get_or_begin(RunKey("", "w"), ring(), 1.0)
    run_tracker.start_call(run, "x")
    assert read_of(run_tracker, "c") == scheduled(1.0)


def test_runs_expire_unless_a_call_is_in_progress():
    run_tracker = RunTracker()
    idle = run_tracker.get_or_begin(RunKey("", "idle"), ring(), 0.0)
    call(run_tracker, idle, "a")
    busy = run_tracker.get_or_begin(RunKey("", "busy"), ring(), 0.0)
    run_tracker.start_call(busy, "a")
    run_tracker.expire(RUN_TTL_S + 1)
    assert run_tracker.find(RunKey("", "idle")) is None
    assert run_tracker.find(RunKey("", "busy")) is busy


@pytest.mark.parametrize("seed", range(20))
def test_steps_and_changes_over_random_runs_are_the_minima_of_all_runs(seed):
    rng = random.Random(seed)
    run_tracker, published = RunTracker(), {}
    graphs = [ring("abc"), ring("cbad"), Workflow().edge("a", "b", True).edge("a", "c", True)]
    graphs[2] = graphs[2].edge("b", "a").edge("c", "a").freeze()
    for now in range(200):
        run_tracker.begin_step()
        key = RunKey("", str(rng.randint(0, 5)))
        run = run_tracker.get_or_begin(key, rng.choice(graphs), float(now))
        agent = rng.choice("abcdx")
        if rng.random() < 0.5 or not run.calls:
            prefix = PrefixReader("", agent, rng.randint(0, 1)) if rng.random() < 0.3 else None
            run_tracker.start_call(run, agent, prefix)
        else:
            agent = rng.choice(sorted(run.calls))
            run_tracker.finish_call(run, agent, is_done=rng.random() < 0.8, overrides={})
        if rng.random() < 0.05:
            run_tracker.end(run.key)
        published.update(run_tracker.drain_changes())
        runs = [run for i in range(6) if (run := run_tracker.find(RunKey("", str(i))))]
        for agent in "abcdx":
            prefixes = [PrefixReader("", agent, 0), PrefixReader("", agent, 1)]
            for reader in (AgentReader("", agent), *prefixes):
                values = [
                    run.agent_reads[agent]
                    for run in runs
                    if agent in run.agent_reads
                    and reader in run.prefixes.get(agent, [AgentReader("", agent)])
                ]
                expected = min(values, default=UNKNOWN)
                assert run_tracker.next_read_of(reader) == expected
                assert published.get(reader, UNKNOWN) == expected


def test_a_throttled_call_has_the_steps_of_a_throttled_run():
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(RunKey("", "w"), ring(), 0.0)
    run_tracker.start_call(run, "a")
    run_tracker.set_throttled(run.key, is_throttled=True)
    assert [read_of(run_tracker, agent) for agent in "abc"] == [
        RUNNING,
        scheduled(1.0).throttled(),
        scheduled(2.0).throttled(),
    ]
    for agent in "bx":  # the graph knows no x
        run_tracker.start_call(run, agent)
        run_tracker.throttle_call(run, agent)
    assert [read_of(run_tracker, agent) for agent in "bx"] == [RUNNING.throttled()] * 2
    run_tracker.start_call(run, "a")
    run_tracker.throttle_call(run, "a")
    assert read_of(run_tracker, "a") == scheduled(0.0)  # its other call goes on
    run_tracker.finish_call(run, "a", is_done=True, overrides={})
    assert read_of(run_tracker, "a") == RUNNING.throttled()
    run_tracker.finish_call(run, "x", is_done=False, overrides={})
    assert read_of(run_tracker, "x") == UNKNOWN
    run_tracker.set_throttled(run.key, is_throttled=False)
    assert distances(run_tracker, "ab") == [0, 0]


def test_a_quiet_run_is_demoted_until_it_calls_again():
    run_tracker = RunTracker(demotes_quiet_runs=True)
    left = run_tracker.get_or_begin(RunKey("", "left"), ring(), 0.0)
    call(run_tracker, left, "a")
    run_tracker.touch(left, 0.0)
    now = 0.0
    while now < MIN_QUIET_S:
        run_tracker.expire(now)
        assert read_of(run_tracker, "b") == scheduled(0.0)
        now += 1.0
    run_tracker.expire(now + 1.0)
    assert read_of(run_tracker, "b") == RUNNING.throttled()
    run_tracker.get_or_begin(left.key, None, now + 1.0)  # it calls
    assert read_of(run_tracker, "b") == scheduled(0.0)
    run_tracker.start_call(left, "b")
    run_tracker.expire(now + 100.0)
    assert read_of(run_tracker, "c") == scheduled(1.0)  # a run with a call is not quiet


def test_a_run_is_quiet_later_where_idle_times_are_long():
    run_tracker = RunTracker(demotes_quiet_runs=True)
    run = run_tracker.get_or_begin(RunKey("", "w"), ring(), 0.0)
    now = 0.0
    for _ in range(40):
        run_tracker.get_or_begin(run.key, None, now)
        call(run_tracker, run, "a")
        run_tracker.touch(run, now)
        now += 30.0
        run_tracker.get_or_begin(run.key, None, now)
    run_tracker.expire(now + 2 * MIN_QUIET_S)
    assert read_of(run_tracker, "b") < RUNNING.throttled()
    run_tracker.expire(now + 2 * QUIET_FACTOR * 30.0)
    assert read_of(run_tracker, "b") >= RUNNING.throttled()


def test_changes_and_ended_runs_must_be_drained():
    run_tracker = RunTracker()
    run_tracker.check_drained()
    run_tracker.get_or_begin(RunKey("", "w"), ring(), 0.0)
    with pytest.raises(IntegrityError, match="not drained"):
        run_tracker.check_drained()
    run_tracker.drain_changes()
    run_tracker.check_drained()
    run_tracker.end(RunKey("", "w"))
    run_tracker.drain_changes()
    with pytest.raises(IntegrityError, match="not drained"):
        run_tracker.check_drained()
    assert run_tracker.drain_ended() == [RunKey("", "w")]
    run_tracker.check_drained()


def test_the_bytes_of_a_tenants_runs_are_bounded_and_the_longest_idle_ones_end():
    run_tracker = RunTracker(max_bytes=400_000)
    other = run_tracker.get_or_begin(RunKey("other", "w"), ring(), 0.0)
    overrides = {f"agent{i}": scheduled(float(i)) for i in range(100)}
    runs = []
    for i in range(10):
        run = run_tracker.get_or_begin(RunKey("t", str(i)), None, float(i))
        runs.append(run)
        call(run_tracker, run, "a", overrides)
        run_tracker.touch(run, float(i))
        run_tracker.touch(runs[0], float(i))
    left = [run for run in runs if run_tracker.find(run.key) is run]
    assert left == [runs[0], *runs[-len(left) + 1 :]]
    assert 2 < len(left) < 8
    ended = run_tracker.drain_ended()
    assert ended == [run.key for run in runs if run not in left]
    assert run_tracker.find(other.key) is other
    assert run_tracker.usage.num_evicted == len(ended)
    for run in left:
        run_tracker.end(run.key)
    assert read_of(run_tracker, "agent5", "t") == UNKNOWN


def test_runs_of_one_graph_count_it_once():
    graph = chain(*(f"agent{i}" for i in range(300))).freeze()
    one, many = RunTracker(), RunTracker()
    one.get_or_begin(RunKey("t", "0"), graph, 0.0)
    for i in range(10):
        many.get_or_begin(RunKey("t", str(i)), graph, 0.0)
    shared = graph.num_bytes
    assert many.usage.num_bytes - shared == 10 * (one.usage.num_bytes - shared)
    for i in range(9):
        many.end(RunKey("t", str(i)))
    assert many.usage == one.usage
    many.end(RunKey("t", "9"))
    assert many.usage.num_bytes == 0


@pytest.mark.parametrize("num_agents", [1, 50, 1000])
def test_the_bytes_of_a_run_are_estimated(num_agents):
    def make():
        run_tracker = RunTracker()
        for i in range(5):
            run = run_tracker.get_or_begin(RunKey("t", f"run{i}"), None, 0.0)
            steps = {f"a{i}-{agent}": scheduled(float(agent)) for agent in range(num_agents)}
            call(run_tracker, run, "a", steps)
        for _ in range(20):  # steps, until all are up to date
            run_tracker.begin_step()
        run_tracker.drain_changes()
        return run_tracker

    num_bytes, run_tracker = traced_bytes(make)
    assert 0.8 * num_bytes <= run_tracker.usage.num_bytes <= 2 * num_bytes


@pytest.mark.parametrize("is_running", [False, True])
def test_prefixes_of_a_run_count_as_its_memory(is_running):
    def make():
        run_tracker = RunTracker()
        run = run_tracker.get_or_begin(RunKey("", "w"), None, 0.0)
        for i in range(400):
            agent = f"{i:0200d}"
            prefix = PrefixReader("", "".join([*agent]), hash((i, "prefix")))
            run_tracker.start_call(run, agent, prefix)
            if not is_running:
                run_tracker.finish_call(run, agent, is_done=True, overrides={})
            run_tracker.begin_step()
            run_tracker.drain_changes()
        return run_tracker

    num_bytes, run_tracker = traced_bytes(make)
    assert num_bytes <= run_tracker.usage.num_bytes <= 2.5 * num_bytes


def test_names_of_next_agents_count_as_memory_of_their_run():
    def make():
        run_tracker = RunTracker()
        run = run_tracker.get_or_begin(RunKey("", "w"), None, 0.0)
        names = ["".join(["\N{ROBOT FACE}"] * 250) + str(i) for i in range(60)]
        call(run_tracker, run, "a", overrides={name: scheduled(1.0) for name in names})
        run_tracker.drain_changes()
        return run_tracker

    num_bytes, run_tracker = traced_bytes(make)
    assert num_bytes <= run_tracker.usage.num_bytes <= 2.5 * num_bytes


def test_a_run_knows_the_prefixes_of_the_agents_that_were_called_last():
    run_tracker = RunTracker()
    run = run_tracker.get_or_begin(RunKey("", "w"), None, 0.0)
    first = PrefixReader("", "first", 1)
    run_tracker.start_call(run, "first", first)
    sizes = set()
    for i in range(3 * MAX_AGENTS_OF_RUN):
        agent = f"{i:05d}"
        run_tracker.start_call(run, agent, PrefixReader("", agent, i))
        run_tracker.finish_call(run, agent, is_done=True, overrides={})
        run_tracker.begin_step()
        if i >= MAX_AGENTS_OF_RUN:
            sizes.add(run.num_bytes)
    assert len(run.prefixes) == MAX_AGENTS_OF_RUN
    assert len(sizes) == 1
    assert run_tracker.next_read_of(first) == UNKNOWN
    assert run_tracker.next_read_of(first.of_agent) == RUNNING


def test_runs_that_move_beyond_the_work_of_a_step_are_updated_in_turns(monkeypatch):
    monkeypatch.setattr(run_tracker_module, "MAX_WORK", 1)
    run_tracker = RunTracker()
    run_tracker.begin_step()
    runs = {
        (tenant, i): run_tracker.get_or_begin(RunKey(tenant, str(i)), ring(), 0.0)
        for tenant, i in (("t", 0), ("t", 1), ("t", 2), ("u", 0))
    }
    run_tracker.start_call(runs["t", 0], "a")
    run_tracker.start_call(runs["u", 0], "b")  # stale already: it is updated once

    def updated():
        return [key for key, run in runs.items() if run.agent_reads]

    order = [updated()]
    for _ in range(5):
        run_tracker.begin_step()
        order.append(updated())
    assert [len(keys) for keys in order] == [1, 2, 3, 4, 4, 4]
    assert order[0] == [("t", 0)]
    assert ("u", 0) in order[2]  # whatever of the other tenant waits
    assert read_of(run_tracker, "b", "u") == RUNNING
    assert read_of(run_tracker, "a", "t") == RUNNING


def test_a_run_that_ends_while_it_is_stale_leaves_nothing(monkeypatch):
    monkeypatch.setattr(run_tracker_module, "MAX_WORK", 1)
    run_tracker = RunTracker()
    for i in range(3):
        run_tracker.get_or_begin(RunKey("t", str(i)), ring(), 0.0)
    for i in range(3):
        run_tracker.end(RunKey("t", str(i)))
    for _ in range(4):
        run_tracker.begin_step()
    assert read_of(run_tracker, "a", "t") == UNKNOWN
    assert run_tracker.usage.num_bytes == 0


def test_recognised_runs_are_not_counted_as_named():
    tracker = RunTracker()
    named, recognised = RunKey("t", "run"), RunKey("t", f"{RECOGNISED}1")
    for key in (named, recognised):
        tracker.get_or_begin(key, None, 0.0)
    assert (len(tracker), tracker.num_named) == (2, 1)
    for key in (named, recognised):
        tracker.end(key)
    assert (len(tracker), tracker.num_named) == (0, 0)


def test_the_learned_order_says_nothing_of_conversations():
    tracker = RunTracker()
    run, reader = tracker.get_or_begin(RunKey("t", "run"), None, 0.0), SessionReader("t", "s")
    tracker.start_call(run, "chat", forecast={"chat": scheduled(1.0)})
    tracker.finish_call(run, "chat", is_done=True, overrides={}, forecast={"chat": scheduled(0.0)})
    assert tracker.attach_reader(run, "chat", reader) == UNKNOWN
    assert tracker.next_read_of(AgentReader("t", "chat")) == scheduled(0.0)
    tracker.start_call(run, "chat")
    tracker.finish_call(run, "chat", is_done=True, overrides={"chat": scheduled(2.0)})
    assert tracker.history_read(run, "chat") == scheduled(2.0)
