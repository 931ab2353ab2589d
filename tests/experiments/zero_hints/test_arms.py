"""The same calls under each arm, and what was predicted."""

import pytest

from experiments.compare.driver import CallRecord
from experiments.compare.run_cell import CellResult
from experiments.zero_hints.arms import (
    DECLARED,
    HICACHE,
    ZERO,
    PredictionTrace,
    run_arm,
    window_sums,
)
from experiments.zero_hints.cells import GAIN_CELLS


def record(number, start_s, latency_s, num_computed=10):
    return CallRecord(
        tenant="t",
        workflow_id="w",
        agent="a",
        number=number,
        round=1,
        start_s=start_s,
        first_token_s=start_s,
        end_s=start_s + latency_s,
        num_prompt=100,
        num_cached=0,
        num_host=0,
        num_computed=num_computed,
        num_fixed_recomputed=0,
    )


def result(*latencies, order=(0, 1, 2)):
    records = [record(n, float(i), latencies[n]) for i, n in enumerate(order)]
    return CellResult({}, records)


def test_a_window_counts_the_same_calls_under_each_arm():
    results = {
        HICACHE: result(1.0, 10.0, 100.0),
        DECLARED: result(1.0, 6.0, 100.0),
        ZERO: result(1.0, 7.0, 100.0, order=(0, 2, 1)),
    }
    sums = window_sums(results, 3, 3)  # call 1, the third to begin without hints
    assert sums.latency_s == {HICACHE: 10.0, DECLARED: 6.0, ZERO: 7.0}
    assert sums.num_calls == 1
    assert sums.gain == pytest.approx(0.4)
    assert sums.share == pytest.approx(0.75)
    both = sums + window_sums(results, 1, 1)
    assert both.latency_s[HICACHE] == 11.0
    assert both.num_calls == 2


def test_a_learned_ring_is_predicted_and_gains_what_its_graph_does():
    cell, trace = GAIN_CELLS["cycle"], PredictionTrace()
    workload = cell.workload(1, is_quick=True)
    results = {
        arm: run_arm(arm, cell.setting, workload, trace if arm == ZERO else None)
        for arm in (HICACHE, DECLARED, ZERO)
    }
    sums = window_sums(results, 31, workload.num_calls)
    assert sums.gain > 0.2
    assert sums.share > 0.9
    assert trace.share_right(31, workload.num_calls) == 1.0
    assert trace.share_right(10_000, 20_000) is None
