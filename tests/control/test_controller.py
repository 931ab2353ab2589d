"""Workflows through the engine: what is kept, brought back and dropped, and what fails."""

import numpy as np
import pytest

from kvflow_jax.cache.transfer import Direction
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.workflow.hints import Hints, HintStatus, Reuse
from kvflow_jax.workflow.workflow import Workflow
from tests.support.token_runner import Client, make_engine, run

KVFLOW = CacheSettings(eviction="kvflow", prefetches=True, num_host_blocks=200, extent_sizes=(1, 4))
HICACHE = CacheSettings(offloads_everything=True, num_host_blocks=200, extent_sizes=(1, 4))
AGENTS = [f"agent{i}" for i in range(6)]


def cycle():
    workflow = Workflow()
    for agent, following in zip(AGENTS, AGENTS[1:] + AGENTS[:1], strict=True):
        workflow.edge(agent, following)
    return workflow.freeze()


def prompt_of(agent, turn, length=32):
    """A fixed prefix of 32 tokens of the agent's own, and a few that differ by turn."""
    number = AGENTS.index(agent)
    return [10 + number] * length + [turn % 40, 1 + turn % 3]


def call(engine, agent, turn, graph, **hints):
    hints = {"workflow_id": "run", "agent_id": agent, "graph": graph, "num_fixed": 32, **hints}
    client = Client(engine, prompt_of(agent, turn), max_tokens=4, hints=Hints(**hints))
    run(engine)
    assert client.tokens == client.cold
    return client


def go_round(engine, rounds=4):
    """Tokens of fixed prefixes that each call after the first round had to compute."""
    graph, computed = cycle(), []
    for turn in range(rounds):
        for agent in AGENTS:
            client = call(engine, agent, turn, graph)
            if turn:
                computed.append(32 - min(client.stats.num_cached_tokens, 32))
    return computed


def test_agents_in_a_cycle_find_their_prefixes_where_recency_finds_none():
    """Three of six prefixes fit the pool: least recently used is the worst order there is."""
    lru = make_engine(num_pages=32)
    assert set(go_round(lru)) == {32}
    kvflow = make_engine(num_pages=32, cache=KVFLOW)
    assert set(go_round(kvflow)) == {0}
    stats = kvflow.stats
    assert stats.num_useful_blocks > 0
    assert stats.num_loaded_blocks > 0
    hicache = make_engine(num_pages=32, cache=HICACHE)
    assert set(go_round(hicache)) == {0}
    assert hicache.stats.host_prompt_tokens > kvflow.stats.host_prompt_tokens


def test_steps_alone_keep_what_comes_next_without_a_host():
    settings = CacheSettings(eviction="kvflow")
    computed = go_round(make_engine(num_pages=40, cache=settings))
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


def test_a_fixed_prefix_nobody_told_of_is_learned():
    engine = make_engine(num_pages=32, cache=KVFLOW)
    graph = cycle()
    for turn in range(4):
        for agent in AGENTS:
            client = call(engine, agent, turn, graph, num_fixed=None)
    assert client.stats.num_cached_tokens >= 32


def test_a_conversation_is_kept_until_its_session_ends():
    engine = make_engine(num_pages=24, max_model_len=64, cache=KVFLOW)
    hints = Hints(agent_id="chat", session_id="s", num_fixed=8)
    first = Client(engine, [5] * 24, max_tokens=8, ignore_eos=True, hints=hints)
    run(engine)
    history = first.prompt + first.tokens
    for turn in range(5):  # others that fill the pool
        Client(engine, [20 + turn] * 60, max_tokens=2)
        run(engine)
    last = Hints(agent_id="chat", session_id="s", num_fixed=8, session_final=True)
    second = Client(engine, [*history, 3], max_tokens=4, hints=last)
    run(engine)
    assert second.stats.num_cached_tokens >= 28
    assert second.tokens == second.cold
    assert engine.cache.reuse_tracker.node_of(("session", "", "s")) is None


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


@pytest.mark.parametrize("settings", [KVFLOW, HICACHE], ids=["kvflow", "hicache"])
def test_a_load_that_fails_costs_time_not_tokens(settings):
    engine = make_engine(num_pages=32, cache=settings)
    graph = cycle()
    for agent in AGENTS:
        call(engine, agent, 0, graph)
    engine.cache.residency.evict(engine.cache.residency.num_idle)
    run(engine)
    engine.transfers.is_paused = True
    client = Client(engine, prompt_of("agent0", 1), max_tokens=3)
    for _ in range(3):
        engine.step()
    while client.reason is None:
        engine.transfers.complete(1, error=RuntimeError("the link is down"))
        engine.step()
        engine.check_integrity()
    assert client.tokens == client.cold
    assert engine.stats.num_failed_transfers > 0
    engine.transfers.is_paused = False
    run(engine)


class Clock:
    """Time passes when the test says so."""

    def __init__(self):
        self.time_s = 0.0

    def now(self):
        return self.time_s

    def wait(self, event, timeout_s=None):
        raise AssertionError("nothing waits here")


def test_a_load_that_never_ends_is_given_up_and_the_link_left_alone():
    clock = Clock()
    engine = make_engine(num_pages=32, cache=HICACHE, clock=clock)
    call(engine, "agent0", 0, None)
    call(engine, "agent1", 0, None)
    engine.cache.residency.evict(engine.cache.residency.num_idle)
    run(engine)
    engine.transfers.is_paused = True
    first = Client(engine, prompt_of("agent0", 1), max_tokens=3)
    for _ in range(3):
        engine.step()
    assert first.reason is None
    clock.time_s += 1000.0
    run_held(engine, first)
    assert first.tokens == first.cold
    assert not engine.transfer_manager.is_usable(Direction.LOAD)
    second = Client(engine, prompt_of("agent1", 1), max_tokens=3)
    run_held(engine, second)
    assert second.tokens == second.cold  # computed: nothing is asked of the link
    engine.transfers.is_paused = False
    run(engine)
    assert engine.transfer_manager.is_usable(Direction.LOAD)
    assert engine.cache.num_leased == 0


def run_held(engine, client):
    for _ in range(200):
        engine.step()
        engine.check_integrity()
        if client.reason is not None:
            return
    raise AssertionError("the request does not end")


def test_a_host_that_refuses_memory_is_left_at_what_it_gave():
    engine = make_engine(num_pages=32, cache=KVFLOW)
    engine.transfers.is_paused = True
    graph = cycle()
    client = Client(
        engine,
        prompt_of("agent0", 0),
        max_tokens=3,
        hints=Hints(workflow_id="run", agent_id="agent0", graph=graph, num_fixed=32),
    )
    run_held(engine, client)
    for _ in range(5):
        engine.step()
    assert engine.transfers.in_flight
    engine.transfers.complete(10, error=MemoryError("no pinned memory"))
    engine.step()
    engine.check_integrity()
    assert engine.cache.residency.host.num_blocks == 0
    engine.transfers.is_paused = False
    go_round(engine)
    assert engine.cache.residency.host.num_blocks == 0


def test_runs_that_are_abandoned_expire():
    clock = Clock()
    engine = make_engine(cache=KVFLOW, clock=clock)
    call(engine, "agent0", 0, cycle())
    assert engine.stats.num_runs == 1
    clock.time_s += 10_000
    engine.step()
    assert engine.stats.num_runs == 0
    assert len(engine.cache.reuse_tracker) == 0
    assert np.isinf(engine.cache.table.steps).all()


def test_a_long_lived_conversation_holds_no_other_back():
    clock = Clock()
    engine = make_engine(num_pages=200, cache=KVFLOW, clock=clock)
    for i, ttl_s in enumerate([86_400.0, 1.0, 1.0, 1.0]):
        hints = Hints(agent_id="chat", session_id=str(i), ttl_s=ttl_s)
        Client(engine, [5 + i] * 20, max_tokens=2, hints=hints)
        run(engine)
    clock.time_s += 10.0
    engine.step()
    kept = [i for i in range(4) if engine.cache.reuse_tracker.node_of(("session", "", str(i)))]
    assert len(engine.controller._sessions) == 1
    assert len(kept) <= 1


@pytest.mark.parametrize("offloads_early", [True, False])
def test_a_slow_link_to_the_host_holds_few_copies_on_the_device(offloads_early):
    """Each block on its way is there twice: with none landing, eviction must do without."""
    settings = CacheSettings(
        eviction="kvflow",
        prefetches=True,
        offloads_early=offloads_early,
        num_host_blocks=10_000,
        extent_sizes=(1, 4),
    )
    engine = make_engine(num_pages=32, cache=settings)
    engine.transfers.is_paused = True
    for turn in range(10):
        for agent in AGENTS:
            hints = Hints(workflow_id=str(turn), agent_id=f"{agent}{turn}", num_fixed=32)
            number = 60 + 6 * turn + AGENTS.index(agent)
            client = Client(engine, [number % 50] * 31 + [turn], max_tokens=2, hints=hints)
            run_held(engine, client)
    assert sum(len(one.job.pages) for one in engine.transfers.in_flight) <= 16
    engine.transfers.is_paused = False
    run(engine)


def test_hints_that_break_something_cost_no_answer(caplog):
    engine = make_engine(cache=KVFLOW)
    for bad in ({"next_agents": ["b"]}, {"next_agents": {"b": "high"}}, {"workflow_id": ["x"]}):
        hints = Hints(**{"workflow_id": "w", "agent_id": "a", **bad})
        client = Client(engine, [1, 2, 3], max_tokens=2, ignore_eos=True, hints=hints)
        run(engine)
        assert client.tokens == client.cold
    assert "could not be used" in caplog.text
    assert engine.is_idle
