"""Workflows through the engine: which prefixes are kept, prefetched and released."""

from dataclasses import replace

import numpy as np
import pytest

from kvflow_jax.cache.index import RootKey
from kvflow_jax.cache.next_read import SUFFIX, UNKNOWN, scheduled
from kvflow_jax.control.call_order import CallOrder
from kvflow_jax.control.readers import AgentReader, RunKey, SessionReader
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.workflow.hints import HintParser, Hints, HintStatus, Reuse
from tests.support.agent_cycle import (
    AGENTS,
    HICACHE,
    KVFLOW,
    ManualClock,
    call,
    cycle,
    prompt_of,
    run_rounds,
)
from tests.support.step_graphs import chain
from tests.support.token_runner import Client, make_engine, run


def test_agents_in_a_cycle_hit_their_prefixes_where_lru_always_misses():
    """Three of six prefixes fit the pool: LRU is the worst order of eviction."""
    lru = make_engine(num_pages=32)
    assert set(run_rounds(lru)) == {32}
    kvflow = make_engine(num_pages=32, cache=KVFLOW)
    assert set(run_rounds(kvflow)) == {0}
    stats = kvflow.stats
    assert stats.num_useful_blocks > 0
    assert stats.num_loaded_blocks > 0
    hicache = make_engine(num_pages=32, cache=HICACHE)
    assert set(run_rounds(hicache)) == {0}
    assert hicache.stats.host_prompt_tokens > kvflow.stats.host_prompt_tokens


def test_steps_keep_the_next_prefixes_without_a_host_tier():
    settings = CacheSettings(eviction="kvflow")
    recomputed = run_rounds(make_engine(num_pages=40, cache=settings))
    assert 0 < sum(recomputed) / len(recomputed) < 24


def test_a_request_reports_the_outcome_of_its_hints():
    engine = make_engine(cache=KVFLOW)
    graph = cycle()
    assert call(engine, "agent0", 0, graph).stats.hint_status is HintStatus.APPLIED
    client = call(engine, "agent1", 0, None, graph_id="unregistered", workflow_id="other")
    assert client.stats.hint_status is HintStatus.UNKNOWN_GRAPH
    client = call(engine, "agent1", 0, graph, is_clipped=True)
    assert client.stats.hint_status is HintStatus.CLIPPED
    client = Client(engine, [1, 2, 3], hints=Hints(priority=3))
    run(engine)
    assert client.stats.hint_status is HintStatus.APPLIED
    plain = Client(engine, [1, 2, 3], hints=Hints())
    run(engine)
    assert plain.stats.hint_status is HintStatus.IGNORED
    plain = Client(engine, [1, 2, 3])
    run(engine)
    assert plain.stats.hint_status is None


def test_hints_are_ignored_where_nothing_depends_on_them():
    graph = cycle()
    for settings in (CacheSettings(), HICACHE):
        engine = make_engine(cache=settings)
        assert call(engine, "agent0", 0, graph).stats.hint_status is HintStatus.IGNORED
        client = call(engine, "agent1", 0, graph, priority=3)  # orders the queue
        assert client.stats.hint_status is HintStatus.CLIPPED
        client = call(engine, "agent1", 0, None, graph_id="unregistered", workflow_id="other")
        assert client.stats.hint_status is HintStatus.UNKNOWN_GRAPH
        client = call(engine, "agent1", 0, graph, is_clipped=True)
        assert client.stats.hint_status is HintStatus.IGNORED
    offloads_by_reader = CacheSettings(num_host_blocks=16)
    engine = make_engine(cache=offloads_by_reader)
    assert call(engine, "agent0", 0, graph).stats.hint_status is HintStatus.APPLIED


def test_another_graph_than_that_of_the_run_is_not_applied():
    engine = make_engine(cache=KVFLOW)
    for agents, status in (
        (("agent0", "agent1", "agent2"), HintStatus.APPLIED),
        (("agent0", "agent1", "agent2"), HintStatus.APPLIED),
        (("agent0", "agent2"), HintStatus.CLIPPED),
    ):
        client = call(engine, "agent0", 0, chain(*agents).freeze())
        assert client.stats.hint_status is status


@pytest.mark.parametrize(
    ("hints", "status"),
    [
        # Without a run no graph is followed.
        (Hints(agent_id="a", graph_id="unregistered"), HintStatus.UNKNOWN_GRAPH),
        (Hints(agent_id="a", graph=chain("a", "b").freeze()), HintStatus.CLIPPED),
        (Hints(agent_id="a", next_agents={"b": 1.0}), HintStatus.CLIPPED),
        (Hints(workflow_id="w", steps_to_execution={"b": 1.0}), HintStatus.CLIPPED),
        (Hints(agent_id="a", ttl_s=5.0), HintStatus.CLIPPED),
        (Hints(agent_id="a", session_final=True), HintStatus.CLIPPED),
        (Hints(session_final=True), HintStatus.IGNORED),
        (Hints(graph=chain("a", "b").freeze()), HintStatus.IGNORED),
        (Hints(session_id="s", ttl_s=5.0), HintStatus.APPLIED),
        (Hints(agent_id="a", num_fixed=2), HintStatus.APPLIED),
        (Hints(reuse=Reuse.DISCARD), HintStatus.APPLIED),
    ],
)
def test_hints_are_applied_only_where_all_of_them_are_used(hints, status):
    engine = make_engine(cache=KVFLOW)
    client = Client(engine, [1, 2, 3], hints=hints)
    run(engine)
    assert client.stats.hint_status is status
    assert client.outputs[0].hint_status is status  # with the first token


def test_a_call_with_a_deadline_that_nothing_reads_is_served_as_without():
    engine = make_engine(cache=KVFLOW)
    hints = HintParser({"agent_id": "a", "deadline_ms": 5}).parse()
    client = Client(engine, [1, 2, 3], hints=hints)
    run(engine)
    assert client.stats.hint_status is HintStatus.CLIPPED
    assert client.tokens == client.cold


def test_steps_and_chances_of_one_agent_are_both_used():
    engine = make_engine(cache=KVFLOW)
    hints = {"steps_to_execution": {"agent1": 2.0}, "next_agents": {"agent1": 0.25, "agent2": 0.5}}
    client = call(engine, "agent0", 0, None, **hints)
    assert client.stats.hint_status is HintStatus.APPLIED
    reads = engine.controller.run_tracker.find(RunKey("", "run")).agent_reads
    assert reads["agent1"] == scheduled(2.0, chance=0.25)
    assert reads["agent2"] == scheduled(0.0, chance=0.5)


def test_a_run_whose_caller_wants_no_prefetch_loads_when_it_asks():
    loads = []
    for prefetch in (None, False):
        engine = make_engine(num_pages=32, cache=KVFLOW)
        assert set(run_rounds(engine, prefetch=prefetch)) == {0}
        loads.append(engine.stats.num_useful_blocks)
    assert loads[0] > 0
    assert loads[1] == 0


@pytest.mark.parametrize("settings", [HICACHE, KVFLOW])
def test_chats_without_hints_are_loaded_from_the_host(settings):
    """The device holds three of six."""
    engine = make_engine(num_pages=32, cache=settings)
    for turn in range(3):
        for agent in AGENTS:
            client = Client(engine, prompt_of(agent, turn), max_tokens=4)
            run(engine)
            assert client.tokens == client.cold
            assert (client.stats.num_cached_tokens >= 32) == (turn > 0)
    assert engine.stats.num_loaded_blocks > 0
    engine.check_integrity()


def test_a_discarded_call_is_not_kept():
    engine = make_engine(cache=KVFLOW)
    call(engine, "agent0", 0, None, reuse=Reuse.DISCARD)
    assert len(engine.cache._readers) == 0
    call(engine, "agent0", 0, None, reuse=Reuse.KEEP)
    assert len(engine.cache._readers) == 2  # its fixed prefix, and the whole sequence


def test_a_ready_request_runs_while_another_waits_for_its_load():
    engine = make_engine(num_pages=32, cache=HICACHE)
    call(engine, "agent0", 0, None)
    engine.controller.prefetcher.plan_offloads(engine.transfer_manager)
    run(engine)
    engine.cache.evict(engine.cache.num_idle, 0.0)
    run(engine)
    engine.transfers.is_paused = True
    waits = Client(engine, prompt_of("agent0", 1), max_tokens=3)
    runs = Client(engine, [7] * 12, max_tokens=3, ignore_eos=True)
    for _ in range(10):
        engine.step()
    assert runs.reason is FinishReason.LENGTH
    assert waits.reason is None
    assert engine.is_waiting
    engine.check_integrity()
    engine.transfers.is_paused = False
    run(engine)
    assert waits.tokens == waits.cold
    assert waits.stats.num_cached_host_tokens == 32
    assert engine.stats.stall_s > 0


def test_abandoned_runs_expire():
    clock = ManualClock()
    engine = make_engine(cache=KVFLOW, clock=clock)
    call(engine, "agent0", 0, cycle())
    assert engine.stats.num_runs == 1
    clock.time_s += 10_000
    engine.step()
    assert engine.stats.num_runs == 0
    assert len(engine.cache._readers) == 0


@pytest.mark.parametrize("name", ["get_or_begin", "start_call", "finish_call", "touch"])
def test_hints_that_raise_cost_no_answer(caplog, monkeypatch, name):
    def fails(*args, **kwargs):
        raise ZeroDivisionError("injected")

    engine = make_engine(cache=KVFLOW)
    monkeypatch.setattr(engine.controller.run_tracker, name, fails)
    hints = Hints(workflow_id="w", agent_id="a")
    client = Client(engine, [1, 2, 3], max_tokens=2, ignore_eos=True, hints=hints)
    run(engine)
    assert client.tokens == client.cold
    assert "could not be used" in caplog.text
    assert engine.is_idle


@pytest.mark.parametrize("name", ["begin_call", "end_call", "forecast"])
def test_recognition_that_raises_costs_no_hints_and_ends_all_calls(caplog, monkeypatch, name):
    def fails(*args, **kwargs):
        raise ZeroDivisionError("injected")

    engine = make_engine(cache=replace(KVFLOW, predictor="context-tree"))
    monkeypatch.setattr(CallOrder, name, fails)
    named = call(engine, "agent0", 0, cycle(), session_id="chat")
    assert named.stats.hint_status is HintStatus.APPLIED
    plain = Client(engine, [7] * 8 + [1, 2, 3], max_tokens=2, ignore_eos=True, num_system=8)
    run(engine)
    assert plain.tokens == plain.cold
    assert plain.stats.hint_status is None
    assert "injected" in caplog.text
    controller = engine.controller
    assert not controller._runs
    assert not controller._calling_runs
    assert not any(controller.run_tracker.find(key).calls for key in controller.run_tracker._runs)
    assert SessionReader("", "chat") in engine.cache._readers._attachments


@pytest.fixture
def controller():
    return make_engine(cache=KVFLOW).controller


def test_a_registered_graph_serves_the_runs_of_its_tenant(controller):
    controller.graphs.register("t", "review", chain("plan", "code").freeze())
    assert controller.begin_run("t", "w", None, "review", 0.0) is HintStatus.APPLIED
    assert controller.begin_run("other", "w", None, "review", 0.0) is HintStatus.UNKNOWN_GRAPH
    assert controller.run_tracker.next_read_of(AgentReader("t", "code")) == scheduled(1.0)
    assert controller.graphs.unregister("t", "review")
    assert not controller.graphs.unregister("t", "review")
    assert controller.run_tracker.next_read_of(AgentReader("t", "code")) == scheduled(
        1.0
    )  # the run goes on


def test_progress_that_a_caller_reports_moves_the_run(controller):
    controller.begin_run("", "w", chain("plan", "code", "test").freeze(), None, 0.0)
    assert controller.advance_run("", "w", ["plan"], ["code", "stranger"], 1.0) == ["stranger"]
    assert controller.run_tracker.next_read_of(AgentReader("", "test")) == scheduled(1.0)
    assert controller.advance_run("", "unknown", [], [], 1.0) is None


def test_the_end_of_a_run_releases_its_histories():
    engine = make_engine(cache=KVFLOW)
    call(engine, "agent0", 0, None, reuse=Reuse.KEEP)
    assert len(engine.cache._readers) == 2
    assert engine.controller.end_run("", "run")
    assert len(engine.cache._readers) == 1  # its fixed prefix
    assert not engine.controller.end_run("", "run")


def test_the_end_of_a_run_can_leave_its_sessions():
    engine = make_engine(cache=KVFLOW)
    call(engine, "agent0", 0, None, session_id="chat")
    assert engine.controller.end_run("", "run", keeps_sessions=True)
    assert len(engine.cache._readers) == 2  # its fixed prefix and the session
    call(engine, "agent0", 0, None, session_id="chat")
    assert engine.controller.end_run("", "run")
    assert len(engine.cache._readers) == 1
    engine.check_integrity()


def test_the_last_call_of_a_run_ends_it():
    engine = make_engine(cache=KVFLOW)
    call(engine, "agent0", 0, cycle())
    assert engine.stats.num_runs == 1
    call(engine, "agent1", 0, cycle(), session_final=True)
    assert engine.controller.run_tracker.find(RunKey("", "run")) is None


@pytest.fixture
def fallback(monkeypatch):
    """An engine, and tenants that fall back to LRU in it as soon as they are added to the set."""
    settings = CacheSettings(eviction="kvflow", safeguards=True, predictor="context-tree")
    engine, tenants = make_engine(num_pages=100, cache=settings), set()
    lru_fallback = engine.controller._lru_fallback
    monkeypatch.setattr(lru_fallback, "falls_back_to_lru", tenants.__contains__)
    monkeypatch.setattr(lru_fallback, "on_prefill_done", lambda request, *, is_agent_call: True)
    return engine, tenants


def reads_of(engine, client):
    """The next reads of the blocks that a client's prompt begins with."""
    cache, root = engine.cache, RootKey("tokens", "", "")
    path = cache.match(root, np.array(client.prompt, np.int32))
    return [cache.next_read_of(block) for block in path]


def test_conversations_of_a_tenant_that_falls_back_to_lru_are_of_unknown_order(fallback):
    engine, tenants = fallback
    client = call(engine, "agent1", 0, cycle(), session_id="chat")
    call(engine, "agent0", 0, cycle())
    assert reads_of(engine, client)[-1].is_scheduled
    tenants.add("")
    call(engine, "agent0", 1, cycle(), workflow_id="other")
    assert set(reads_of(engine, client)) == {UNKNOWN}
    tenants.clear()
    call(engine, "agent0", 2, cycle(), workflow_id="another")
    assert reads_of(engine, client)[-1].is_scheduled


def test_conversations_that_seem_to_end_are_kept_by_recency_where_lru_decides(fallback):
    engine, tenants = fallback

    def ask(i):
        client = Client(engine, [7] * 8 + [20 + i] * 9, num_system=8)
        run(engine)
        return reads_of(engine, client)[-1]

    first = [ask(i) for i in range(6)]
    assert first[0] != SUFFIX
    assert first[-1] == SUFFIX  # no conversation of the agent goes on
    tenants.add("")
    assert ask(6) == UNKNOWN
    tenants.clear()
    assert ask(7) == SUFFIX


def test_an_answer_that_was_used_ends_no_conversation_where_lru_decides(fallback, monkeypatch):
    engine, tenants = fallback
    begin_call = CallOrder.begin_call
    used = (SessionReader("", "chat"),)
    monkeypatch.setattr(
        CallOrder, "begin_call", lambda *args: begin_call(*args)._replace(ended=used)
    )
    client = call(engine, "agent1", 0, None, session_id="chat")
    tenants.add("")
    call(engine, "agent0", 0, None)
    assert reads_of(engine, client)[-1] == UNKNOWN
    tenants.clear()
    call(engine, "agent0", 1, None)
    assert SessionReader("", "chat") not in engine.cache._readers._attachments
    assert engine.stats.ended_histories["use"] == 1


def test_the_last_call_of_an_unnamed_run_ends_no_run():
    engine = make_engine(num_pages=32, cache=replace(KVFLOW, predictor="context-tree"))
    tracker = engine.controller.run_tracker
    for _ in range(8):  # until histories of this agent are not kept
        Client(engine, [7] * 9, max_tokens=2, ignore_eos=True, hints=Hints(agent_id="a"))
        run(engine)
    num_runs = len(tracker)
    last = Hints(agent_id="a", session_final=True)
    Client(engine, [7] * 9, max_tokens=2, ignore_eos=True, hints=last)
    run(engine)
    assert len(tracker) == num_runs > 0
