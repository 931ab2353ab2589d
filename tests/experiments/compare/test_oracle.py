"""The oracle against brute force over tokens."""

import numpy as np
import pytest

from experiments.compare.arms import ARMS, arms_named, gap_closed
from experiments.compare.driver import Driver
from experiments.compare.oracle import Oracle
from experiments.compare.run_cell import DoesNotFitError, Setting, run_cell
from experiments.workloads.agents import branching, team
from experiments.workloads.base import Sizes
from experiments.workloads.paper import cycle
from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.sim.machines import A10G, LLAMA_3_1_8B, UnknownNameError
from kvflow_jax.sim.simulation import Simulation

PAGE = 16
SETTING = Setting(LLAMA_3_1_8B, A10G, pool_tokens=1200, host_tokens=4000, max_num_seqs=8)


def small_team():
    return team(num_runs=3, num_rounds=1, sizes=Sizes(64, 20, 12), vocab_size=50, seed=4)


def test_next_reads_are_those_of_the_tokens():
    workload = small_team()
    recorded = run_cell(SETTING, workload, ARMS["kvflow"]).records
    oracle = Oracle(workload, recorded, PAGE)
    simulation = Simulation(
        LLAMA_3_1_8B,
        A10G,
        CacheConfig(mode="kvflow"),
        pool_tokens=1200,
        host_tokens=4000,
        max_num_seqs=8,
        max_prefill_tokens=2048,
        max_model_len=512,
    )
    driver = Driver(workload, simulation)
    table = simulation.engine.cache.table
    oracle.listen(driver.submitted.__getitem__, table)
    rank = {call: place for place, call in enumerate(oracle.order)}
    ended, checked = [], []

    class Checked:
        """Notes what the oracle says when a call ends; prompts are known only later."""

        def __getattr__(self, name):
            return getattr(oracle, name)

        def on_finish(self, request, now):
            oracle.on_finish(request, now)
            run, number = driver.submitted[request.id]
            ended.append(rank[run.tenant, run.workflow_id, number])
            blocks = request.lease.blocks
            keys = oracle.eviction_order(table, blocks)[:, 0]
            checked.append((request.known_tokens.copy(), -keys, set(ended)))

    simulation.engine.tracer = Checked()
    driver.start()
    simulation.run()
    driver.finish(0)
    # Every prompt as it was asked, by rank.
    prompts = {}
    for run in workload.runs:
        for number, call in enumerate(run.calls):
            parts = [driver._answers[run, p] if isinstance(p, int) else p for p in call.parts]
            place = rank[run.tenant, run.workflow_id, number]
            prompts[place] = np.concatenate([np.asarray(part) for part in parts])
    num_read_again = 0
    for tokens, next_reads, done in checked:
        for block, said in enumerate(next_reads):
            end = (block + 1) * PAGE
            if end > len(tokens):
                continue  # not full: never shared
            readers = [
                place
                for place, prompt in prompts.items()
                if place not in done and np.array_equal(prompt[:end], tokens[:end])
            ]
            assert said == (min(readers) if readers else np.inf)
            num_read_again += bool(readers)
    assert num_read_again > 20


def test_nobody_beats_it_by_much_and_it_gains_where_recency_fails():
    sizes = Sizes(2048, 32, 16)
    workload = cycle(num_agents=6, num_rounds=2, sizes=sizes, vocab_size=1000)
    where = Setting(LLAMA_3_1_8B, A10G, 3 * sizes.fixed + 96, 8 * sizes.fixed, max_num_seqs=4)
    arms = {name: run_cell(where, workload, ARMS[name]).figures for name in ARMS}
    best = arms["oracle"]["makespan_s"]
    assert best <= 1.01 * min(arm["makespan_s"] for arm in arms.values())
    assert gap_closed(arms, "kvflow", "makespan_s") > 0.9
    assert gap_closed(arms, "gpu-only", "makespan_s") == 0
    assert gap_closed({"gpu-only": arms["gpu-only"]}, "gpu-only", "makespan_s") is None


def test_the_same_seed_gives_the_same_figures_under_every_arm():
    workload = branching(num_runs=2, num_rounds=1, sizes=Sizes(64, 16, 8), vocab_size=50)
    for name in ARMS:
        assert (
            run_cell(SETTING, workload, ARMS[name]).figures
            == run_cell(SETTING, workload, ARMS[name]).figures
        )


def test_what_cannot_be_played_is_said():
    with pytest.raises(UnknownNameError, match="gpu-only"):
        arms_named("kvflow,best")
    assert arms_named("all") == list(ARMS)
    large = cycle(num_agents=2, num_rounds=1, sizes=Sizes(2000, 8, 8), vocab_size=50)
    with pytest.raises(DoesNotFitError, match="832 too few"):
        run_cell(SETTING, large, ARMS["kvflow"])
