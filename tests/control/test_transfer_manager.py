"""Transfers between the tiers, and links that fail, hang or are slow."""

import pytest

from kvflow_jax.cache.transfer import Direction
from kvflow_jax.control.transfer_manager import MAX_STAGED_SHARE
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.workflow.hints import Hints
from tests.support.agent_cycle import (
    AGENTS,
    HICACHE,
    KVFLOW,
    ManualClock,
    call,
    cycle,
    prompt_of,
    run_rounds,
    run_until_finished,
)
from tests.support.token_runner import Client, make_engine, run


@pytest.mark.parametrize("settings", [KVFLOW, HICACHE], ids=["kvflow", "hicache"])
def test_a_load_that_fails_costs_time_not_tokens(settings):
    engine = make_engine(num_pages=32, cache=settings)
    graph = cycle()
    for agent in AGENTS:
        call(engine, agent, 0, graph)
    engine.cache.evict(engine.cache.num_idle, 0.0)
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


@pytest.mark.parametrize("refused", ["submit", "read_blocks"])
def test_a_link_that_refuses_everything_costs_time_not_tokens(monkeypatch, refused):
    engine, graph = make_engine(num_pages=32, cache=HICACHE), cycle()
    for round_ in range(2):
        for agent in AGENTS:
            call(engine, agent, round_, graph)

    def refuse(*args):
        raise RuntimeError("no host memory")

    owner = engine.transfers if refused == "submit" else engine.runner
    monkeypatch.setattr(owner, refused, refuse)
    for round_ in range(2, 4):
        for agent in AGENTS:
            client = call(engine, agent, round_, graph)
            assert client.tokens == client.cold
            engine.check_integrity()
    assert engine.stats.num_failed_transfers > 0
    run(engine)
    assert engine.cache.num_leased == 0


def test_a_load_that_times_out_is_recomputed_and_its_link_left_alone():
    clock = ManualClock()
    engine = make_engine(num_pages=32, cache=HICACHE, clock=clock)
    call(engine, "agent0", 0, None)
    call(engine, "agent1", 0, None)
    engine.cache.evict(engine.cache.num_idle, 0.0)
    run(engine)
    engine.transfers.is_paused = True
    first = Client(engine, prompt_of("agent0", 1), max_tokens=3)
    for _ in range(3):
        engine.step()
    assert first.reason is None
    clock.time_s += 1000.0
    run_until_finished(engine, first)
    assert first.tokens == first.cold
    assert not engine.transfer_manager.is_usable(Direction.LOAD)
    second = Client(engine, prompt_of("agent1", 1), max_tokens=3)
    run_until_finished(engine, second)
    assert second.tokens == second.cold  # computed: the link is not used
    engine.transfers.is_paused = False
    run(engine)
    assert engine.transfer_manager.is_usable(Direction.LOAD)
    assert engine.cache.num_leased == 0


def test_a_host_that_refuses_memory_is_not_asked_again_at_once():
    engine = make_engine(num_pages=32, cache=KVFLOW)
    engine.transfers.is_paused = True
    graph = cycle()
    client = Client(
        engine,
        prompt_of("agent0", 0),
        max_tokens=3,
        hints=Hints(workflow_id="run", agent_id="agent0", graph=graph, num_fixed=32),
    )
    run_until_finished(engine, client)
    for _ in range(5):
        engine.step()
    assert engine.transfers.in_flight
    engine.transfers.complete(10, error=MemoryError("no pinned memory"))
    engine.step()
    engine.check_integrity()
    assert engine.cache.tiers.num_host_blocks == 0
    engine.transfers.is_paused = False
    run_rounds(engine)
    assert engine.cache.tiers.num_host_blocks == 0


@pytest.mark.parametrize("offloads_early", [True, False])
def test_a_slow_link_holds_few_copies_on_the_device(offloads_early):
    """Each block in flight takes two pages.

    As no offload completes, eviction continues without host copies.
    """
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
            run_until_finished(engine, client)
    assert sum(len(transfer.job.pages) for transfer in engine.transfers.in_flight) <= 16
    engine.transfers.is_paused = False
    run(engine)


def offloading_engine(**kwargs):
    """An engine with the offload of one prefix in flight, and its transfer manager."""
    engine = make_engine(num_pages=32, cache=HICACHE, **kwargs)
    engine.transfers.is_paused = True
    run_until_finished(engine, Client(engine, prompt_of("agent0", 0), max_tokens=3))
    for _ in range(3):
        engine.step()
    assert engine.transfers.in_flight
    return engine, engine.transfer_manager


def test_the_bandwidth_follows_the_transfers_that_complete():
    engine, transfer_manager = offloading_engine()
    link = transfer_manager.links[Direction.OFFLOAD]
    before = link.bytes_per_s
    (transfer, *_) = engine.transfers.in_flight
    transfer.started_s, transfer.finished_s = 1.0, 3.0
    engine.transfers.complete(1)
    engine.step()
    assert link.num_bytes == transfer.nbytes
    assert link.busy_s == 2.0
    assert link.bytes_per_s == pytest.approx(0.8 * before + 0.2 * transfer.nbytes / 2.0)


def test_an_estimate_includes_the_transfers_in_flight():
    engine, transfer_manager = offloading_engine()
    rate = transfer_manager.links[Direction.OFFLOAD].bytes_per_s
    queued = sum(transfer.nbytes for transfer in engine.transfers.in_flight)
    block_bytes = engine.sizes.pool.page_bytes
    expected_s = (queued + 3 * block_bytes) / rate
    assert transfer_manager.estimate_s(Direction.OFFLOAD, 3) == pytest.approx(expected_s)
    assert transfer_manager.estimate_s(Direction.LOAD, 0) == 0.0


def test_transfers_in_flight_reduce_the_offload_budget():
    engine, transfer_manager = offloading_engine()
    residency = engine.cache._residency
    transfer_manager.set_offload_budget()
    reduced = residency.offload_budget
    num_blocks = sum(len(transfer.job.pages) for transfer in engine.transfers.in_flight)
    engine.transfers.complete(len(engine.transfers.in_flight))
    transfer_manager.publish_finished()
    transfer_manager.set_offload_budget()
    assert residency.offload_budget == reduced + num_blocks
    assert residency.offload_budget >= MAX_STAGED_SHARE * 32


def test_a_transfer_of_an_earlier_cache_is_dropped():
    engine, transfer_manager = offloading_engine()
    transfer_manager.reset(engine.cache)
    assert not transfer_manager.has_in_flight
    engine.transfers.complete(10)
    assert transfer_manager.publish_finished() == ([], None)
    assert transfer_manager.links[Direction.OFFLOAD].num_bytes == 0
