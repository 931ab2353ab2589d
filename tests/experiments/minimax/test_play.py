"""A run is recorded from its start, up to where it diverges."""

import numpy as np
import pytest

from experiments.minimax.play import inconsistency, play
from experiments.minimax.problems import Quadratic, gradients, two_nodes
from experiments.minimax.rivals import METHODS, DAdaGrad
from kvflow_jax.minimax import DAdaST, full


def problem():
    return Quadratic(*(array.astype(np.float32) for array in two_nodes().data))


def run(name, gamma=0.1, **settings):
    begin = np.zeros(2, np.float32)
    rule = METHODS[name].rule(gamma, gamma)
    return play(name, rule, full(2), gradients, problem().data, begin, begin, **settings)


@pytest.mark.parametrize("name", ["D-SGDA", "DM-HSGD", "D-AdaST, coordinate-wise"])
def test_rules_without_scalars_are_recorded_without_zeta(name):
    trace = run(name, 0.001, steps=300, every=3)
    assert trace.steps.tolist() == list(range(0, 301, 3))
    assert trace.x.shape == trace.y.shape == (2, 101)
    assert not trace.x[:, 0].any()
    assert trace.x[:, -1].all()
    assert (trace.zeta, trace.diverged_by) == (None, None)


def test_zeta_is_recorded_after_each_record_but_the_first():
    tracked, own = run("D-AdaST", steps=200, every=2), run("D-TiAda", steps=200, every=2)
    assert tracked.zeta.shape == own.zeta.shape == (100,)
    assert tracked.zeta.max() < 1e-10
    assert own.zeta[-1] > 1e-3


def test_a_run_that_diverges_ends_there():
    trace = run("D-SGDA", 1.0, steps=10_000, every=10)
    # At stepsize 1 the square of the gradient leaves float32 within some hundred steps.
    assert trace.diverged_by is not None
    assert trace.steps[-1] == trace.diverged_by - 100
    assert np.isfinite(trace.x).all()


def test_a_run_that_diverges_at_once_has_its_start():
    trace = run("D-SGDA", 1e30, steps=1_000, every=10)
    assert trace.diverged_by == 10
    assert trace.steps.tolist() == [0]
    assert trace.x.shape == (2, 1)


def test_inconsistency_in_closed_form():
    sums = np.array([[1.0], [3.0]])
    # Of D-AdaST the larger sum counts, with alpha; of D-AdaGrad that of x, with 1/2.
    ours = inconsistency(DAdaST(alpha=0.75), np.zeros((2, 1)), sums)
    np.testing.assert_allclose(ours, (0.5**-0.75 - 1) ** 2)
    theirs = inconsistency(DAdaGrad(), sums, np.zeros((2, 1)))
    np.testing.assert_allclose(theirs, (0.5**-0.5 - 1) ** 2)
    assert not inconsistency(DAdaGrad(), np.zeros((2, 1)), sums).any()
