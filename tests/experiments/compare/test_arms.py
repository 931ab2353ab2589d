"""Arms and the figures of a finished run."""

import pytest

from experiments.compare.arms import ARMS, arms_named, figures, gap_closed, speedups
from experiments.compare.driver import CallRecord
from kvflow_jax.requests.outputs import EngineStats
from kvflow_jax.sim.machines import UnknownNameError
from tests.experiments.fake_results import all_arms, arm_figures


def test_an_unknown_arm_names_those_that_exist():
    with pytest.raises(UnknownNameError, match="gpu-only"):
        arms_named("kvflow,best")
    assert arms_named("all") == list(ARMS)
    assert arms_named("kvflow, hicache") == ["kvflow", "hicache"]


def test_savings_are_relative_to_the_fastest_arm_of_the_same_memory():
    played = all_arms(10.0, 8.0, 6.0) | {"oracle": arm_figures(7.0), "unlimited": arm_figures(1.0)}
    assert gap_closed(played, "kvflow", "makespan_s") == 1
    assert gap_closed(played, "oracle", "makespan_s") == pytest.approx(0.75)


def test_no_share_is_given_of_a_small_saving():
    assert gap_closed(all_arms(10.0, 9.9, 9.8), "kvflow", "makespan_s") is None
    assert gap_closed({"gpu-only": arm_figures(1.0)}, "gpu-only", "makespan_s") is None


def record(number, start_s, end_s, round_index):
    return CallRecord(
        *("tenant", "run", "agent", number, round_index, start_s, start_s + 1.0, end_s),
        *(100, 64, 16, 36, 10),
    )


def test_figures_exclude_round_0_but_completions_include_it():
    records = [record(0, 0.0, 5.0, 0), record(1, 5.0, 8.0, 1), record(2, 8.0, 9.0, 1)]
    found = figures(records, EngineStats(), EngineStats())
    assert found["calls"] == 2
    assert found["makespan_s"] == 4.0
    assert found["completions_s"] == [9.0]
    assert found["latency_mean_s"] == 2.0
    assert found["ttft_mean_s"] == 1.0
    assert found["tokens_from_device"] == 2 * 48
    assert found["tokens_from_host"] == 2 * 16
    assert found["load_bytes_per_s"] == 0.0


def test_a_speedup_is_relative_to_gpu_only():
    assert speedups({"gpu-only": arm_figures(6.0), "kvflow": arm_figures(3.0)}) == {
        "gpu-only": 1.0,
        "kvflow": 2.0,
    }
