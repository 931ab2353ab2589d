"""The runs are those that the docstrings name, and no run is listed twice."""

from experiments.minimax.digits import setting
from tests.experiments.minimax.digits.fakes import BEST, GRAPHS


def test_adaptive_methods_have_three_seeds_on_each_graph_at_the_demanded_stepsizes():
    cells = setting.demanded(GRAPHS, setting.SEEDS)
    assert len(set(cells)) == len(cells) == 4 * 3 * 3
    assert {cell.program.gamma_x for cell in cells} == {3.0}


def test_every_method_has_a_sweep_that_holds_the_demanded_stepsize_if_it_adapts():
    cells = setting.sweep()
    assert len(set(cells)) == len(cells)
    assert {cell.program.method for cell in cells} == set(setting.ADAPTIVE + setting.CONSTANT)
    assert all(setting.GAMMA_X in setting.SWEEP[method] for method in setting.ADAPTIVE)


def test_tuned_methods_have_all_seeds_on_the_exponential_graph_only():
    cells = setting.tuned(BEST, GRAPHS, setting.SEEDS)
    assert len(set(cells)) == len(cells) == 7 * (3 + 1 + 1)


def test_mixed_run_without_a_share_is_the_demanded_one():
    assert setting.mixed("D-AdaST", 0.0) in setting.demanded(GRAPHS, setting.SEEDS)
