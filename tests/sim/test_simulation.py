"""Workloads in virtual time: every arm finishes, and what is known of the future saves time."""

import pytest

from experiments.compare.arms import ARMS, PAPER_ARMS, figures
from experiments.compare.driver import Driver
from experiments.compare.run_cell import Setting, run_cell
from experiments.workloads.agents import branching
from experiments.workloads.base import Sizes
from experiments.workloads.paper import concurrent, cycle, stages
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.sim.machines import A10G, H100_PCIE, LLAMA_3_1_8B, QWEN2_5_32B, pool_tokens
from kvflow_jax.sim.profile import Profile
from kvflow_jax.sim.simulation import Simulation

# Round numbers, so that times can be computed by hand: the 2048-token prefix of an 8B model takes
# 0.7 s to compute, and a fifth of that to load.
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
    records = driver.wait(0)
    simulation.engine.check_integrity()
    return figures(records, driver.warm_stats, simulation.stats)


def play_cycle(arm, seed=0):
    workload = cycle(num_agents=6, num_rounds=2, sizes=SIZES, vocab_size=1000, seed=seed)
    return play_arm(workload, arm, pool_tokens=3 * SIZES.fixed + 80)


def test_a_cycle_is_faster_with_a_host_tier_and_fastest_with_prefetching():
    arms = {arm: play_cycle(arm) for arm in PAPER_ARMS}
    times = [arms[arm]["makespan_s"] for arm in ("kvflow", "hicache", "gpu-only")]
    assert times == sorted(times)
    assert arms["gpu-only"]["fixed_recomputed_mean"] == SIZES.fixed
    assert arms["hicache"]["fixed_recomputed_max"] == 0
    assert arms["kvflow"]["fixed_recomputed_max"] == 0
    assert arms["kvflow"]["stall_share"] < 0.05 < arms["hicache"]["stall_share"]
    assert arms["kvflow"]["tokens_from_host"] == 0  # all were prefetched before their request came


def test_a_link_slower_than_a_call_delays_the_cycle():
    slow = Profile(**{**A10G.to_dict(), "link_bytes_per_s": 0.2e9})
    workload = cycle(num_agents=6, num_rounds=2, sizes=SIZES, vocab_size=1000)
    slowly = play_arm(workload, "kvflow", pool_tokens=3 * SIZES.fixed + 80, profile=slow)
    assert slowly["makespan_s"] > play_cycle("kvflow")["makespan_s"]
    assert slowly["prefetch_late_blocks"] + slowly["tokens_recomputed"] > 0


def test_the_same_seed_gives_the_same_figures():
    assert play_cycle("kvflow", seed=3) == play_cycle("kvflow", seed=3)


@pytest.mark.parametrize("arm", PAPER_ARMS)
def test_branches_and_joins_finish(arm):
    workload = branching(num_runs=2, num_rounds=3, sizes=SIZES, vocab_size=1000)
    done = play_arm(workload, arm, pool_tokens=6 * SIZES.fixed, checks_every=10)
    assert done["calls"] == 2 * 3 * 6


@pytest.mark.parametrize("arm", PAPER_ARMS)
def test_concurrent_runs_finish(arm):
    sizes = Sizes(fixed=256, dynamic=64, output=16)
    workload = concurrent(num_runs=16, num_agents=3, num_rounds=2, sizes=sizes, vocab_size=1000)
    done = play_arm(workload, arm, pool_tokens=3072, checks_every=20)
    assert done["calls"] == 16 * 3 * 2


def test_a_fast_link_is_kept_busy_beside_long_steps():
    """A large model's extents are short beside its steps: two at a time would idle the link."""
    workload = stages(num_branches=1, num_rounds=1, sizes=Sizes(4096, 32, 32), vocab_size=1000)
    setting = Setting(QWEN2_5_32B, H100_PCIE, pool_tokens(H100_PCIE, QWEN2_5_32B), 80_000)
    arms = {
        name: run_cell(setting, workload, ARMS[name]).figures for name in ("kvflow", "unlimited")
    }
    assert arms["kvflow"]["fixed_recomputed_max"] == 0
    assert arms["kvflow"]["makespan_s"] < 1.02 * arms["unlimited"]["makespan_s"]


def test_callbacks_submit_and_schedule_in_virtual_time():
    """A second call starts two virtual seconds after the first, and finds its prefix cached."""
    simulation = Simulation(
        LLAMA_3_1_8B,
        A10G,
        ARMS["gpu-only"].cache,
        pool_tokens=1024,
        host_tokens=0,
        max_num_seqs=2,
        max_prefill_tokens=256,
        max_model_len=512,
    )
    spec = RequestSpec(range(200), SamplingParams(max_tokens=4, temperature=0.0))
    finished = []

    def on_first(output):
        if output.finish_reason is not None:
            finished.append(output.stats)
            simulation.call_later(2.0, lambda: simulation.submit(spec, on_second))

    def on_second(output):
        if output.finish_reason is not None:
            finished.append(output.stats)

    simulation.submit(spec, on_first)
    simulation.run()
    first, second = finished
    assert second.arrival_s == pytest.approx(first.finished_s + 2.0)
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 192)
    assert simulation.stats.num_finished == {"length": 2}
