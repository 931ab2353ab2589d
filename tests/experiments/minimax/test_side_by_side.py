"""Runs side by side are those that a run alone gives."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.minimax.problems import gradients, heterogeneous, noisy_gradients, side_by_side
from experiments.minimax.side_by_side import SideBySide, repeat
from kvflow_jax.minimax import DAdaST, over_axis, ring


def single(data):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), data)


def test_each_run_is_as_if_alone():
    problems = [heterogeneous(4, spread) for spread in (0.0, 0.5, 2.0)]
    keys = jax.random.split(jax.random.key(0), 4)
    begin = jnp.ones((4, 3))
    together = over_axis(SideBySide(DAdaST()), ring(4), gradients, steps=30)
    final, _ = together(single(side_by_side(*problems).data), begin, begin, keys)
    assert final.states.step.tolist() == [[30] * 3] * 4
    for index, problem in enumerate(problems):
        alone = over_axis(DAdaST(), ring(4), gradients, steps=30)
        expected, _ = alone(single(problem.data), begin[:, index], begin[:, index], keys)
        np.testing.assert_allclose(final.x[:, index], expected.x, rtol=1e-5)
        np.testing.assert_allclose(final.y[:, index], expected.y, rtol=1e-5)
        np.testing.assert_allclose(final.states.accum_x[:, index], expected.accum_x, rtol=1e-5)


def test_runs_draw_their_own_noise():
    quiet, sigma = heterogeneous(4, 0.0).with_noise(1.0)
    data = repeat(single((quiet, sigma)), 3)
    keys = jax.random.split(jax.random.key(0), 4)
    zeros = jnp.zeros((4, 3))
    grads = jax.vmap(noisy_gradients)(data, zeros, zeros, keys)
    assert len(np.unique(grads)) == 2 * 12


def test_data_are_repeated_behind_the_nodes():
    data = {"a": np.arange(4), "b": np.ones((4, 7))}
    repeated = repeat(data, 3)
    assert {name: leaf.shape for name, leaf in repeated.items()} == {"a": (4, 3), "b": (4, 3, 7)}
    np.testing.assert_array_equal(repeated["a"][:, 2], np.arange(4))
