"""The workloads on which learned order is measured."""

import pytest

from experiments.zero_hints.cells import GAIN_CELLS, HARD_CELLS


@pytest.mark.parametrize("name", [*GAIN_CELLS, *HARD_CELLS])
def test_each_cell_fits_its_machine(name):
    cell = {**GAIN_CELLS, **HARD_CELLS}[name]
    cell.setting.check(cell.workload(1, is_quick=True))


def test_runs_under_one_key_keep_their_own_names():
    workload = HARD_CELLS["one key"].workload(1, is_quick=True)
    assert {run.tenant for run in workload.runs} == {"app"}
    assert len({run.workflow_id for run in workload.runs}) == len(workload.runs)


def test_a_rewired_ring_has_another_order_in_its_second_half():
    (run,) = HARD_CELLS["rewired"].workload(1, is_quick=True).runs
    agents = [call.agent for call in run.calls]
    half = len(agents) // 2
    assert agents[:10] == agents[10:20]
    assert sorted(agents[:10]) == sorted(agents[half : half + 10])
    assert agents[:10] != agents[half : half + 10] == agents[half + 10 : half + 20]


def test_draws_differ_by_seed():
    first, second = (HARD_CELLS["shuffled"].workload(seed, is_quick=True) for seed in (1, 2))
    assert [call.agent for call in first.runs[0].calls] != [
        call.agent for call in second.runs[0].calls
    ]
