"""The problems are what their docstrings say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.minimax.problems import (
    frozen,
    gradients,
    heterogeneous,
    noisy_gradients,
    scaled,
    side_by_side,
    two_nodes,
)


def test_gradients_are_those_of_the_formula():
    coefficients = tuple(np.float32([0.5, -2.0, 3.0, 0.25, 1.5]))

    def value(x, y):
        a, b, c, d, e = coefficients
        return b * x * y - a / 2 * x**2 - c * x - e / 2 * y**2 + d * y

    x, y = 0.3, -0.7
    expected = jax.grad(value, argnums=(0, 1))(x, y)
    got = gradients(coefficients, jnp.float32(x), jnp.float32(y), None)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("x", [-1.0, 0.0, 2.5])
def test_the_line_is_stationary_for_the_mean_of_two_nodes_and_for_none_of_them(x):
    problem = two_nodes()
    both = np.full(2, x), np.full(2, 5 / 3 * x + 2 / 3)
    grads_x, grads_y = gradients(problem.data, *both, None)
    np.testing.assert_allclose([grads_x.mean(), grads_y.mean()], 0, atol=1e-12)
    assert abs(grads_x).max() > 0.1
    at_line = problem.squared_gradient(*(one[:, None] for one in both))
    np.testing.assert_allclose(at_line, [0], atol=1e-20)
    away = problem.squared_gradient(both[0][:, None], both[1][:, None] + 1)
    np.testing.assert_allclose(away, [1.5**2])


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.4), (0.7, 0.3), (0.55, 0.2)])
def test_weighted_gradients_cancel_on_the_frozen_line(alpha, beta):
    x = np.full(3, 10.0)
    grads_x, grads_y = gradients(frozen(alpha, beta).data, x, 0.99 * x, None)
    larger = np.maximum(grads_x**2, grads_y**2)
    np.testing.assert_allclose(larger**-alpha @ grads_x, 0, atol=1e-9)
    np.testing.assert_allclose((grads_y**2) ** -beta @ grads_y, 0, atol=1e-9)
    assert abs(grads_x.mean()) > 0.01


def test_unlike_nodes_have_the_same_mean_at_every_spread():
    alike, unlike = heterogeneous(16, 0.0), heterogeneous(16, 3.0)
    for one, other in zip(alike.data, unlike.data, strict=True):
        np.testing.assert_allclose(one.mean(), other.mean(), atol=1e-12)
    assert unlike.num_nodes == 16
    assert 2 < unlike.a.std() < 4
    assert alike.a.std() == 0
    # The saddle of the mean is 0.
    zeros = np.zeros((16, 1))
    np.testing.assert_allclose(unlike.squared_gradient(zeros, zeros), 0, atol=1e-20)


def test_problems_side_by_side_and_scaled_have_an_entry_each():
    both = side_by_side(heterogeneous(4, 0.0), heterogeneous(4, 1.0))
    np.testing.assert_array_equal(both.a[:, 1], heterogeneous(4, 1.0).a)
    problem = heterogeneous(4, 1.0)
    larger = scaled(problem, np.array([1.0, 10.0]))
    point = np.ones((4, 2))
    for ours, theirs in zip(
        gradients(larger.data, point, point, None),
        gradients(problem.data, point[:, 0], point[:, 0], None),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs[:, None] * [1, 10])


def test_noise_has_its_deviation_and_its_own_draw_in_each_player():
    quiet, sigma = two_nodes().with_noise(0.5)
    data = jax.tree.map(lambda leaf: jnp.asarray(leaf[0], jnp.float32), (quiet, sigma))

    def noise(key):
        exact = gradients(data[0], jnp.float32(0), jnp.float32(0), key)
        return jnp.stack(noisy_gradients(data, jnp.float32(0), jnp.float32(0), key)) - jnp.stack(
            exact
        )

    drawn = jax.vmap(noise)(jax.random.split(jax.random.key(0), 4_000))
    np.testing.assert_allclose(drawn.std(0), 0.5, rtol=0.05)
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.05)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.05
