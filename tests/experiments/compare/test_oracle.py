"""The oracle against brute force over tokens."""

import numpy as np

from experiments.compare.arms import ARMS, gap_closed
from experiments.compare.driver import Driver
from experiments.compare.oracle import Oracle
from experiments.compare.run_cell import Setting, run_cell
from experiments.workloads.agents import team
from experiments.workloads.base import Sizes
from experiments.workloads.paper import cycle
from kvflow_jax.cache.policy import BlockFacts
from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.sim.machines import A10G, LLAMA_3_1_8B
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
    cache = simulation.engine.cache
    oracle.listen(driver.submitted.__getitem__, cache)
    rank = {call: index for index, call in enumerate(oracle.order)}
    ended, checked = [], []

    class Checked:
        """Records the oracle's keys when a call ends; prompts are known only later."""

        def __getattr__(self, name):
            return getattr(oracle, name)

        def on_finish(self, request, now):
            oracle.on_finish(request, now)
            run, number = driver.submitted[request.id]
            ended.append(rank[run.tenant, run.workflow_id, number])
            blocks = request.lease.blocks
            keys = oracle.eviction_order(BlockFacts(cache._table, blocks))[:, 0]
            checked.append((request.known_tokens.copy(), -keys, set(ended)))

    simulation.engine.tracer = Checked()
    driver.start()
    simulation.run()
    driver.wait(0)
    # Every prompt as it was asked, by rank.
    prompts = {}
    for run in workload.runs:
        for number, call in enumerate(run.calls):
            parts = [driver._answers[run, p] if isinstance(p, int) else p for p in call.parts]
            index = rank[run.tenant, run.workflow_id, number]
            prompts[index] = np.concatenate([np.asarray(part) for part in parts])
    num_read_again = 0
    for tokens, next_reads, done in checked:
        for block, next_read in enumerate(next_reads):
            end = (block + 1) * PAGE
            if end > len(tokens):
                continue  # not full: never shared
            readers = [
                place
                for place, prompt in prompts.items()
                if place not in done and np.array_equal(prompt[:end], tokens[:end])
            ]
            assert next_read == (min(readers) if readers else np.inf)
            num_read_again += bool(readers)
    assert num_read_again > 20


def test_no_arm_is_much_faster_and_it_gains_where_lru_fails():
    sizes = Sizes(2048, 32, 16)
    workload = cycle(num_agents=6, num_rounds=2, sizes=sizes, vocab_size=1000)
    setting = Setting(LLAMA_3_1_8B, A10G, 3 * sizes.fixed + 96, 8 * sizes.fixed, max_num_seqs=4)
    arms = {name: run_cell(setting, workload, ARMS[name]).figures for name in ARMS}
    best = arms["oracle"]["makespan_s"]
    assert best <= 1.01 * min(arm["makespan_s"] for arm in arms.values())
    assert gap_closed(arms, "kvflow", "makespan_s") > 0.9
    assert gap_closed(arms, "gpu-only", "makespan_s") == 0
    assert gap_closed({"gpu-only": arms["gpu-only"]}, "gpu-only", "makespan_s") is None
