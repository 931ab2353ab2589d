"""Runs train the network, count calls alike for all methods, and survive divergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.minimax.digits import network
from experiments.minimax.digits.data import Images, divide
from experiments.minimax.digits.training import NUM_RECORDS, Cell, Program, Trainer
from kvflow_jax.minimax import DAdaST, exponential, over_axis, replicate

NUM_NODES = 4
CALLS = 2 * NUM_RECORDS
OURS = Cell(Program("D-AdaST", 3.0, "exponential"), 0)
TWO_CALLS = Cell(Program("DM-HSGD", 0.1, "exponential"), 0)
DIVERGES = Cell(Program("D-SGDA", 1e30, "exponential"), 0)


@pytest.fixture(scope="module")
def outcomes(digits):
    trainer = Trainer(digits, [exponential(NUM_NODES)], CALLS)
    return trainer.train([OURS, TWO_CALLS, DIVERGES, OURS])


def test_each_run_is_played_once(outcomes):
    assert set(outcomes) == {OURS, TWO_CALLS, DIVERGES}


def test_run_is_judged_at_the_mean(digits, outcomes):
    shards = divide(digits.train, NUM_NODES, 0)
    start_key, batch_key = jax.random.split(jax.random.key(0))
    weights, perturbation = jax.jit(network.start)(start_key)
    images = Images(shards.pixels.reshape(-1, 64), shards.labels.ravel())
    run = over_axis(DAdaST(3.0, 0.3), exponential(NUM_NODES), network.gradients, steps=CALLS)
    final, _ = run(
        shards,
        *replicate((weights, perturbation), NUM_NODES),
        jax.random.split(batch_key, NUM_NODES),
    )
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), (final.x, final.y))
    loss = jax.jit(jax.value_and_grad(network.robust_loss))
    after, grads = loss(*mean, images)
    expected = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(grads))
    assert outcomes[OURS].squared_gradients[-1] == pytest.approx(expected, rel=1e-3)
    # And the run has learned something.
    before, _ = loss(weights, perturbation, images)
    assert float(after) < float(before) - 0.3


def test_records_are_as_many_for_a_method_with_two_calls_a_step(outcomes):
    for cell in (OURS, TWO_CALLS):
        assert outcomes[cell].squared_gradients.shape == (NUM_RECORDS,)
        assert np.isfinite(outcomes[cell].squared_gradients).all()


def test_stepsizes_differ_only_where_they_adapt(outcomes):
    assert outcomes[OURS].zeta >= 0
    assert outcomes[TWO_CALLS].zeta is None


def test_run_that_diverges_has_no_outcome(outcomes):
    assert outcomes[DIVERGES] is None
