"""The best rival, the best stepsize, and the ratio between two methods."""

import pytest

from experiments.minimax.digits.setting import EXPONENTIAL, SEEDS, mixed
from experiments.minimax.digits.training import Cell, Program
from tests.experiments.minimax.digits.fakes import outcome, played


def cells(method, gamma_x, seeds=SEEDS):
    return [Cell(Program(method, gamma_x, EXPONENTIAL), seed) for seed in seeds]


def test_ratio_is_the_best_rivals():
    ratio = played().ratio(EXPONENTIAL)
    assert ratio.rival == "D-AdaGrad"
    assert ratio.mean == pytest.approx(10)


def test_ratio_has_the_range_of_the_seeds():
    # The seeds of D-AdaST are .02, .04 and .06, those of D-AdaGrad now .2, .6 and .6.
    ratio = played({cells("D-AdaGrad", 3.0)[1]: outcome(0.6)}).ratio(EXPONENTIAL)
    assert ratio.mean == pytest.approx(1.4 / 0.12)
    assert (ratio.lowest, ratio.highest) == (pytest.approx(10), pytest.approx(15))


def test_rival_that_learned_nothing_does_not_count():
    changes = {cell: outcome(1e-5, train_accuracy=0.1) for cell in cells("D-NeAda", 3.0)}
    assert played(changes).ratio(EXPONENTIAL).rival == "D-AdaGrad"


def test_small_gradient_of_d_adast_says_nothing_before_it_has_learned():
    changes = {cell: outcome(1e-5, train_accuracy=0.1) for cell in cells("D-AdaST", 3.0)}
    seen = played(changes | {mixed("D-AdaST", 1.0): None})
    assert vars(seen.ratio(EXPONENTIAL)) == {
        "rival": "D-AdaGrad",
        "mean": 0,
        "lowest": 0,
        "highest": 0,
    }
    assert seen.mixed_ratios()[1.0] == ("D-AdaGrad", 0)


def test_diverged_rival_does_not_count():
    changes = {cells("D-AdaGrad", 3.0)[0]: None}
    assert played(changes).ratio(EXPONENTIAL).rival == "D-TiAda"


def test_best_stepsize_has_the_smallest_gradient_of_those_that_learned():
    changes = {
        cells("D-SGDA", 0.03, [0])[0]: outcome(0.005),
        cells("D-SGDA", 0.3, [0])[0]: outcome(1e-9, train_accuracy=0.1),
        cells("D-SGDA", 1.0, [0])[0]: None,
    }
    assert played(changes).best_gamma("D-SGDA") == 0.03


def test_mixed_ratio_is_by_share():
    changes = {mixed("D-TiAda", 1.0): outcome(0.01)}
    ratios = played(changes).mixed_ratios()
    assert ratios[0.1] == ("D-AdaGrad", pytest.approx(10))
    assert ratios[1.0] == ("D-TiAda", pytest.approx(0.5))
