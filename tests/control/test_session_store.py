"""Conversation histories between their calls."""

import pytest

from kvflow_jax.bounds.tenant_lru import ENTRY_BYTES
from kvflow_jax.cache.next_read import UNKNOWN, scheduled
from kvflow_jax.control.readers import AgentReader, RunKey, SessionReader
from kvflow_jax.control.run_tracker import RunTracker
from kvflow_jax.control.session_store import SessionStore, history_reader
from kvflow_jax.workflow.hints import Hints
from tests.support.agent_cycle import KVFLOW, ManualClock
from tests.support.step_graphs import chain
from tests.support.token_runner import Client, make_engine, run


def readers(engine):
    """The readers attached to prefixes of an engine's cache."""
    return set(engine.cache._readers._attachments)


@pytest.fixture
def released():
    return []


@pytest.fixture
def run_tracker():
    return RunTracker()


@pytest.fixture
def store(run_tracker, released):
    return SessionStore(run_tracker, lambda reader, run: released.append(reader))


def session(name):
    return SessionReader("t", name)


def test_a_history_that_a_call_continues_is_kept_until_the_call_has_ended(store, released):
    store.keep(session("chat"), None, None, 10.0)
    store.keep(session("other"), None, None, 10.0)
    store.pin(session("chat"))
    store.pin(session("unknown"))
    store.expire(1000.0)  # the call waited in the queue for long
    assert released == [session("other")]
    store.keep(session("chat"), None, None, 1010.0)
    store.expire(1011.0)
    assert released == [session("other"), session("chat")]
    assert len(store) == 0


def test_a_history_that_is_kept_again_expires_later(store, released):
    store.keep(session("chat"), None, None, 10.0)
    store.keep(session("chat"), None, None, 20.0)
    store.expire(15.0)
    assert not released
    store.expire(20.0)
    assert released == [session("chat")]


def test_stale_expiries_do_not_accumulate(store):
    for i in range(1000):
        store.keep(session("chat"), None, None, float(i))
    assert len(store._expiries) < 100


def test_the_bytes_of_a_tenants_histories_are_bounded(run_tracker, released):
    store = SessionStore(
        run_tracker, lambda reader, run: released.append(reader), 2 * (ENTRY_BYTES + 1300)
    )
    other = SessionReader("other", "x")
    store.keep(other, None, None, 10.0)
    for name in "abac":
        store.keep(session(name), None, None, 10.0)
    assert released == [session("b")]  # kept least recently
    store.keep(session("d"), None, None, 10.0, num_blocks=1000)
    assert released[1:] == [session("a"), session("c")]
    assert len(store) == 2
    store.expire(20.0)
    assert set(released[3:]) == {other, session("d")}


def test_a_history_has_the_steps_of_the_agent_that_continues_it(store, run_tracker):
    run = run_tracker.get_or_begin(RunKey("", "w"), chain("plan", "code").freeze(), 0.0)
    assert store.keep(session("chat"), run, "code", 10.0) == scheduled(1.0)
    assert store.keep(session("chat"), None, None, 10.0) == UNKNOWN
    assert not run.readers  # detached again


def test_the_next_reads_of_histories_are_those_of_agents_in_runs(store, run_tracker):
    run = run_tracker.get_or_begin(RunKey("", "w"), chain("plan", "code").freeze(), 0.0)
    store.keep(session("chat"), run, "code", 10.0)
    store.keep(session("no run"), None, None, 10.0)
    assert store.next_reads() == {session("chat"): scheduled(1.0)}
    run_tracker.start_call(run, "code")
    assert store.next_reads()[session("chat")].skips_prefetch  # the agent runs another one
    run_tracker.end(run.key)
    assert store.next_reads() == {session("chat"): UNKNOWN}


def test_the_end_of_a_run_releases_its_histories_only(store, released, run_tracker):
    run = run_tracker.get_or_begin(RunKey("", "w"), chain("plan", "code").freeze(), 0.0)
    store.keep(session("plan's"), run, "plan", 10.0)
    store.keep(session("code's"), run, "code", 10.0)
    store.keep(session("chat"), None, None, 10.0)
    store.end_run(run)
    assert released == [session("plan's"), session("code's")]
    assert len(store) == 1


def test_the_end_of_a_run_can_leave_sessions_to_later_runs(store, released, run_tracker):
    run = run_tracker.get_or_begin(RunKey("", "w"), chain("plan", "code").freeze(), 0.0)
    kept = history_reader("", Hints(workflow_id="w", agent_id="plan"))
    store.keep(session("chat"), run, "plan", 10.0)
    store.keep(kept, run, "plan", 10.0)
    store.end_run(run, keeps_sessions=True)
    assert released == [kept]
    store.expire(10.0)
    assert released == [kept, session("chat")]


def test_a_session_is_named_alike_in_all_runs_and_a_kept_call_is_not():
    def reader(run, session=None):
        return history_reader("t", Hints(workflow_id=run, agent_id="a", session_id=session))

    assert reader("1", "s") == reader("2", "s")
    assert reader("1") != reader("2")


def test_a_conversation_is_kept_until_its_session_ends():
    engine = make_engine(num_pages=24, max_model_len=64, cache=KVFLOW)
    hints = Hints(agent_id="chat", session_id="s", num_fixed=8)
    first = Client(engine, [5] * 24, max_tokens=8, ignore_eos=True, hints=hints)
    run(engine)
    history = first.prompt + first.tokens
    for turn in range(5):  # requests that fill the pool
        Client(engine, [20 + turn] * 60, max_tokens=2)
        run(engine)
    last = Hints(agent_id="chat", session_id="s", num_fixed=8, session_final=True)
    second = Client(engine, [*history, 3], max_tokens=4, hints=last)
    run(engine)
    assert second.stats.num_cached_tokens >= 28
    assert second.tokens == second.cold
    assert SessionReader("", "s") not in readers(engine)


def test_a_conversation_with_a_long_time_to_live_delays_no_other_expiry():
    clock = ManualClock()
    engine = make_engine(num_pages=200, cache=KVFLOW, clock=clock)
    for i, ttl_s in enumerate([86_400.0, 1.0, 1.0, 1.0]):
        hints = Hints(agent_id="chat", session_id=str(i), ttl_s=ttl_s)
        Client(engine, [5 + i] * 20, max_tokens=2, hints=hints)
        run(engine)
    clock.time_s += 10.0
    engine.step()
    kept = readers(engine) - {AgentReader("", "chat")}
    assert len(engine.controller._sessions) == 1
    assert len(kept) <= 1
