"""Workflows through the engine: what is kept, brought back and dropped, and what fails."""

import numpy as np
import pytest

from kvflow_jax.cache.transfer import Direction
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.workflow.hints import Hints, HintStatus, Reuse
from kvflow_jax.workflow.workflow import Workflow
from tests.support.token_runner import Client, make_engine, run











def test_agents_in_a_cycle_find_their_prefixes_where_recency_finds_none():
    """Three of six prefixes fit the pool: least recently used is the worst order there is."""
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


def test_steps_alone_keep_what_comes_next_without_a_host():
    settings = CacheSettings(eviction="kvflow")
    computed = run_rounds(make_engine(num_pages=40, cache=settings))
    assert 0 < sum(computed) / len(computed) < 24


def test_a_request_says_what_became_of_its_hints():
    engine = make_engine(cache=KVFLOW)
    graph = cycle()
    assert call(engine, "agent0", 0, graph).stats.hint_status is HintStatus.APPLIED
    client = call(engine, "agent1", 0, None, graph_id="nobody's", workflow_id="other")
    assert client.stats.hint_status is HintStatus.UNKNOWN_GRAPH
    client = call(engine, "agent1", 0, graph, is_clipped=True)
    assert client.stats.hint_status is HintStatus.CLIPPED
    plain = Client(engine, [1, 2, 3], hints=Hints())
    run(engine)
    assert plain.stats.hint_status is HintStatus.IGNORED
    plain = Client(engine, [1, 2, 3])
    run(engine)
    assert plain.stats.hint_status is None


@pytest.mark.parametrize("settings", [HICACHE, KVFLOW])
def test_what_nobody_spoke_of_comes_back_from_the_host(settings):
    """Chats without a hint, of which the device holds three of six."""
    engine = make_engine(num_pages=32, cache=settings)
    for turn in range(3):
        for agent in AGENTS:
            client = Client(engine, prompt_of(agent, turn), max_tokens=4)
            run(engine)
            assert client.tokens == client.cold
            assert (client.stats.num_cached_tokens >= 32) == (turn > 0)
    assert engine.stats.num_loaded_blocks > 0
    engine.check_integrity()






def test_what_a_caller_discards_is_not_kept():
    engine = make_engine(cache=KVFLOW)
    call(engine, "agent0", 0, None, reuse=Reuse.DISCARD)
    assert len(engine.cache.reuse_tracker) == 0
    call(engine, "agent0", 0, None, reuse=Reuse.KEEP)
    assert len(engine.cache.reuse_tracker) == 2  # its prefix, and the whole


def test_a_ready_request_runs_while_another_waits_for_its_load():
    engine = make_engine(num_pages=32, cache=HICACHE)
    call(engine, "agent0", 0, None)
    engine.controller.prefetcher.plan_offloads(engine.transfer_manager)
    run(engine)
    engine.cache.residency.evict(engine.cache.residency.num_idle)
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












def test_runs_that_are_abandoned_expire():
    clock = ManualClock()
    engine = make_engine(cache=KVFLOW, clock=clock)
    call(engine, "agent0", 0, cycle())
    assert engine.stats.num_runs == 1
    clock.time_s += 10_000
    engine.step()
    assert engine.stats.num_runs == 0
    assert len(engine.cache.reuse_tracker) == 0
    assert np.isinf(engine.cache.table.steps).all()






def test_hints_that_break_something_cost_no_answer(caplog):
    engine = make_engine(cache=KVFLOW)
    for bad in ({"next_agents": ["b"]}, {"next_agents": {"b": "high"}}, {"workflow_id": ["x"]}):
        hints = Hints(**{"workflow_id": "w", "agent_id": "a", **bad})
        client = Client(engine, [1, 2, 3], max_tokens=2, ignore_eos=True, hints=hints)
        run(engine)
        assert client.tokens == client.cold
    assert "could not be used" in caplog.text
    assert engine.is_idle
