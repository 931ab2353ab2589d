"""Virtual time: that it passes as it should, and what it says of the arms."""

import threading

import numpy as np
import pytest

from experiments.compare.arms import ARMS, PAPER_ARMS, figures
from experiments.compare.driver import Driver
from experiments.compare.run_cell import Setting, run_cell
from experiments.workloads.agents import branching
from experiments.workloads.base import Sizes
from experiments.workloads.paper import concurrent, cycle, stages
from kvflow_jax.cache.transfer import Direction, Transfer
from kvflow_jax.runtime.batch import Batch, BatchShape
from kvflow_jax.sim.clock import VirtualClock
from kvflow_jax.sim.machines import (
    A10G,
    H100_PCIE,
    LLAMA_3_1_8B,
    QWEN2_5_32B,
    SMOLLM2_135M,
    pool_tokens,
)
from kvflow_jax.sim.profile import Profile
from kvflow_jax.sim.runner import SimBlocks, SimRunner
from kvflow_jax.sim.simulation import Simulation
from kvflow_jax.sim.transfers import SimTransfers

# Round numbers, so that times can be told by hand: an 8B model's 2048-token prefix takes 0.7 s to
# compute, and a fifth of that to load.
SIZES = Sizes(fixed=2048, dynamic=32, output=16)


def play_arm(workload, arm, *, pool_tokens, checks_every=0, profile=A10G):
    simulation = Simulation(
        LLAMA_3_1_8B,
        profile,
        ARMS[arm].cache,
        pool_tokens=pool_tokens,
        host_tokens=40 * SIZES.fixed,
        max_num_seqs=8,
        max_prefill_tokens=1024,
        max_model_len=workload.longest,
        checks_every=checks_every,
    )
    driver = Driver(workload, simulation)
    driver.start()
    simulation.run()
    records = driver.finish(0)
    simulation.engine.check_integrity()
    return figures(records, driver.warm_stats, simulation.stats)


def play_cycle(arm, seed=0):
    workload = cycle(num_agents=6, num_rounds=2, sizes=SIZES, vocab_size=1000, seed=seed)
    return play_arm(workload, arm, pool_tokens=3 * SIZES.fixed + 80)


def test_events_run_in_order_and_at_their_time():
    clock, seen = VirtualClock(), []
    for time_s in (2.0, 1.0, 2.0, 5.0):
        clock.schedule(time_s, lambda: seen.append(clock.now()))
    clock.advance_to(3.0)
    assert seen == [1.0, 2.0, 2.0]
    assert clock.now() == 3.0
    clock.schedule(1.0, lambda: seen.append(clock.now()))  # the past is now
    assert clock.advance_to_next_event()
    assert clock.advance_to_next_event()
    assert seen[3:] == [3.0, 5.0]
    assert not clock.advance_to_next_event()


def test_waiting_lets_time_pass_until_the_event_or_the_end():
    clock, event = VirtualClock(), threading.Event()
    clock.schedule(2.0, event.set)
    clock.wait(event, timeout_s=1.0)
    assert (clock.now(), event.is_set()) == (1.0, False)
    clock.wait(event)
    assert (clock.now(), event.is_set()) == (2.0, True)


def batch_of(num_tokens, context, *, tile=128):
    batch = Batch.empty(BatchShape(-(-num_tokens // tile), 0, tile), 64, 4)
    batch.query_start[:] = context + np.arange(0, num_tokens, tile)
    batch.query_len[:] = tile
    return batch


@pytest.mark.parametrize("shape", [LLAMA_3_1_8B, SMOLLM2_135M], ids=lambda shape: shape.name)
def test_steps_take_longer_with_tokens_and_with_context(shape):
    times = [A10G.step_s(shape, batch_of(n, 0)) for n in (128, 512, 1024, 2048)]
    assert times == sorted(times)
    assert A10G.step_s(shape, batch_of(512, 4096)) > A10G.step_s(shape, batch_of(512, 0))


def test_a_prefill_is_bound_by_products_and_a_decode_step_by_weights():
    assert A10G.step_s(LLAMA_3_1_8B, batch_of(2048, 0)) == pytest.approx(
        2048 * LLAMA_3_1_8B.flops_per_token / A10G.flops_per_s, rel=0.1
    )
    decode = Batch.empty(BatchShape(0, 1, 128), 64, 4)
    decode.query_len[:] = 1
    assert A10G.step_s(LLAMA_3_1_8B, decode) == pytest.approx(
        LLAMA_3_1_8B.weight_bytes / A10G.mem_bytes_per_s, rel=0.1
    )


def test_transfers_go_beside_steps_and_one_after_the_other():
    clock = VirtualClock()
    transfers = SimTransfers(clock, A10G)
    runner = SimRunner(clock, A10G, LLAMA_3_1_8B, block_bytes=1 << 21)
    step = runner.submit(batch_of(2048, 0))
    both = [Transfer(Direction.LOAD, None, SimBlocks(64, 0.0), 1 << 27, 0.0) for _ in range(2)]
    for transfer in both:
        transfers.submit(transfer)
    took_s = A10G.transfer_s(1 << 27)
    step.result()
    assert transfers.poll() == both
    assert both[0].finished_s - both[0].started_s == pytest.approx(took_s)
    assert both[1].started_s == both[0].finished_s
    assert clock.now() == pytest.approx(A10G.host_s + A10G.step_s(LLAMA_3_1_8B, batch_of(2048, 0)))


def test_a_backup_waits_for_the_step_that_writes_its_blocks():
    clock = VirtualClock()
    transfers = SimTransfers(clock, A10G)
    runner = SimRunner(clock, A10G, LLAMA_3_1_8B, block_bytes=1 << 21)
    step = runner.submit(batch_of(2048, 0))
    staged = runner.read_blocks(np.arange(4))
    transfers.submit(backup := Transfer(Direction.OFFLOAD, None, staged, 1 << 23, clock.now()))
    step.result()
    assert transfers.poll() == []
    assert clock.advance_to_next_event()
    assert transfers.poll() == [backup]
    assert backup.data is not None


def test_the_more_is_known_of_a_cycle_the_sooner_it_is_round():
    arms = {arm: play_cycle(arm) for arm in PAPER_ARMS}
    times = [arms[arm]["makespan_s"] for arm in ("kvflow", "hicache", "gpu-only")]
    assert times == sorted(times)
    assert arms["gpu-only"]["fixed_recomputed_mean"] == SIZES.fixed
    assert arms["hicache"]["fixed_recomputed_max"] == 0
    assert arms["kvflow"]["fixed_recomputed_max"] == 0
    assert arms["kvflow"]["stall_share"] < 0.05 < arms["hicache"]["stall_share"]
    assert arms["kvflow"]["tokens_from_host"] == 0  # all were there before they were asked for


def test_a_link_that_is_slower_than_a_call_is_waited_for():
    slow = Profile(**{**A10G.to_dict(), "link_bytes_per_s": 0.2e9})
    workload = cycle(num_agents=6, num_rounds=2, sizes=SIZES, vocab_size=1000)
    slowly = play_arm(workload, "kvflow", pool_tokens=3 * SIZES.fixed + 80, profile=slow)
    assert slowly["makespan_s"] > play_cycle("kvflow")["makespan_s"]
    assert slowly["prefetch_late_blocks"] + slowly["tokens_recomputed"] > 0


def test_the_same_seed_gives_the_same_figures():
    assert play_cycle("kvflow", seed=3) == play_cycle("kvflow", seed=3)


@pytest.mark.parametrize("arm", PAPER_ARMS)
def test_branches_and_joins_come_to_an_end(arm):
    workload = branching(num_runs=2, num_rounds=3, sizes=SIZES, vocab_size=1000)
    done = play_arm(workload, arm, pool_tokens=6 * SIZES.fixed, checks_every=10)
    assert done["calls"] == 2 * 3 * 6


@pytest.mark.parametrize("arm", PAPER_ARMS)
def test_many_runs_at_once_come_to_an_end(arm):
    sizes = Sizes(fixed=256, dynamic=64, output=16)
    workload = concurrent(num_runs=16, num_agents=3, num_rounds=2, sizes=sizes, vocab_size=1000)
    done = play_arm(workload, arm, pool_tokens=3072, checks_every=20)
    assert done["calls"] == 16 * 3 * 2


def test_a_fast_link_is_kept_busy_beside_long_steps():
    """Of a large model an extent is soon over and a step takes long: two at a time would crawl."""
    workload = stages(num_branches=1, num_rounds=1, sizes=Sizes(4096, 32, 32), vocab_size=1000)
    setting = Setting(QWEN2_5_32B, H100_PCIE, pool_tokens(H100_PCIE, QWEN2_5_32B), 80_000)
    arms = {name: run_cell(setting, workload, ARMS[name]).figures for name in ("kvflow", "unlimited")}
    assert arms["kvflow"]["fixed_recomputed_max"] == 0
    assert arms["kvflow"]["makespan_s"] < 1.02 * arms["unlimited"]["makespan_s"]
