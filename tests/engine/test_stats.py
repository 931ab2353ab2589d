"""The engine's statistics."""

from dataclasses import fields

from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.engine.stats import counters, snapshot
from kvflow_jax.errors import StepFailedError
from kvflow_jax.requests.outputs import EngineStats
from tests.support.token_runner import Client, make_engine, run


def test_counters_add_those_of_replaced_caches_and_schedulers():
    engine = make_engine()
    Client(engine, [9] * 10)
    run(engine)
    before = EngineStats(prompt_tokens=100, num_evicted_blocks=7)
    total = counters(engine.cache, engine.scheduler, before)
    assert total.prompt_tokens == 110
    assert total.num_evicted_blocks == 7
    twice = counters(engine.cache, engine.scheduler, total)
    assert twice.prompt_tokens == 120


def test_a_snapshot_has_gauges_of_requests_and_blocks():
    engine = make_engine(max_num_seqs=1)
    for seed in range(2):
        Client(engine, [seed] * 10)
    engine.step()
    stats = snapshot(engine.cache, engine.scheduler, engine.transfer_manager, EngineStats())
    assert (stats.num_running, stats.num_waiting) == (1, 1)
    assert stats.num_blocks == 32
    assert stats.num_blocks_leased == 3  # ten tokens in pages of four
    assert stats.num_blocks_cached == 2  # the full ones


def test_transferred_bytes_are_counted_by_direction():
    cache = CacheSettings(offloads_everything=True, num_host_blocks=16)
    engine = make_engine(num_pages=8, max_model_len=24, cache=cache)
    for seed in (8, 9, 10, 8):
        Client(engine, [seed] * 17, max_tokens=1)
        run(engine)
    stats, block_bytes = engine.stats, engine.sizes.pool.page_bytes
    assert stats.num_backed_up_blocks >= stats.num_loaded_blocks > 0
    assert stats.save_bytes == stats.num_backed_up_blocks * block_bytes
    assert stats.load_bytes == stats.num_loaded_blocks * block_bytes
    assert stats.num_blocks_host <= stats.max_blocks_host == 16
    assert stats.num_failed_transfers == 0


def test_no_counter_decreases_when_the_engine_restarts():
    engine = make_engine()
    Client(engine, [9] * 10)
    run(engine)
    before = engine.stats
    engine.fail_all(StepFailedError("injected"))
    names = [field.name for field in fields(EngineStats) if field.type == "int"]
    counted = names[names.index("num_steps") :]
    assert "generation_tokens" in counted
    assert all(getattr(engine.stats, name) >= getattr(before, name) for name in counted)


def test_a_step_counts_what_it_samples_and_the_prompts_it_completes():
    engine = make_engine()
    Client(engine, [9] * 10, max_tokens=3)
    run(engine)
    steps = engine.stats.tokens_per_step
    assert sum(steps.counts) == 3
    assert steps.num_tokens == 10 + 3
    assert engine.stats.num_deferred == 0


def test_a_request_that_admission_passes_over_is_deferred():
    engine = make_engine()
    clients = [Client(engine, [9 + i] * 5, max_tokens=1) for i in range(2)]
    engine.scheduler.can_admit = lambda request: request.id != clients[0].id
    engine.step()
    assert (engine.stats.num_waiting, engine.stats.num_deferred) == (1, 1)
    engine.scheduler.can_admit = lambda request: True
    run(engine)
    assert (engine.stats.num_waiting, engine.stats.num_deferred) == (0, 0)
