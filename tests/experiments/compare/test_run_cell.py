"""One arm on one workload in virtual time."""

from dataclasses import replace

import pytest

from experiments.compare.arms import ARMS
from experiments.compare.run_cell import DoesNotFitError, Setting, run_cell
from experiments.workloads.agents import branching
from experiments.workloads.base import Sizes
from experiments.workloads.paper import cycle
from kvflow_jax.sim.machines import A10G, LLAMA_3_1_8B

SETTING = Setting(LLAMA_3_1_8B, A10G, pool_tokens=1200, host_tokens=4000, max_num_seqs=8)


def test_the_same_seed_gives_the_same_figures_under_every_arm():
    workload = branching(num_runs=2, num_rounds=1, sizes=Sizes(64, 16, 8), vocab_size=50)
    for name in ARMS:
        assert (
            run_cell(SETTING, workload, ARMS[name]).figures
            == run_cell(SETTING, workload, ARMS[name]).figures
        )


def test_a_call_larger_than_the_pool_is_refused():
    large = cycle(num_agents=2, num_rounds=1, sizes=Sizes(2000, 8, 8), vocab_size=50)
    with pytest.raises(DoesNotFitError, match="832 too few"):
        run_cell(SETTING, large, ARMS["kvflow"])


def test_a_model_larger_than_the_machine_is_refused_with_a_remedy():
    workload = cycle(num_agents=2, num_rounds=1, sizes=Sizes(16, 8, 8), vocab_size=50)
    with pytest.raises(DoesNotFitError, match="--pool-tokens"):
        replace(SETTING, pool_tokens=0).check(workload)


def test_an_oracle_arm_runs_every_call():
    workload = cycle(num_agents=3, num_rounds=1, sizes=Sizes(48, 8, 8), vocab_size=50)
    oracle = run_cell(SETTING, workload, ARMS["oracle"])
    assert len(oracle.records) == workload.num_calls
