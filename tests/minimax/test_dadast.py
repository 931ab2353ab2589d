"""A step is the paper's, takes one message, and reaches what the paper says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvflow_jax.errors import ConfigError
from kvflow_jax.minimax.dadast import DAdaST, State, power
from kvflow_jax.minimax.sets import ball
from tests.minimax import reference
from tests.minimax.float64_figures import FROZEN


def alone(message):
    return message


@settings(max_examples=20)
@given(
    st.floats(0.05, 0.45),
    st.floats(0.55, 0.95),
    st.floats(0.01, 1),
    st.integers(1, 3),
    st.integers(1, 3),
)
def test_one_node_steps_as_tiada(beta, alpha, start, x_len, y_len):
    rule = DAdaST(0.5, 0.25, alpha, beta, start)
    rng = np.random.default_rng(0)
    square, matrix = rng.normal(size=(x_len, x_len)), rng.normal(size=(x_len, y_len))

    def gradients(x, y):
        return x @ square + y @ matrix.T, x @ matrix - y

    x, y = rng.normal(size=x_len), rng.normal(size=y_len)
    expected = reference.run(rule, np.ones((1, 1)), gradients, x[None], y[None], 5)
    state = rule.init(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    for k in range(5):
        state = rule.step(state, *gradients(state.x, state.y), alone)
        got = (state.x, state.y, state.accum_x, state.accum_y)
        for ours, theirs in zip(got, expected, strict=True):
            np.testing.assert_allclose(ours, theirs[k, 0], rtol=1e-3, atol=1e-4)
    assert int(state.step) == 5


def test_first_step_in_closed_form():
    rule = DAdaST(gamma_x=1.0, gamma_y=2.0, alpha=0.75, beta=0.25, start=0.0)
    state = rule.init(jnp.array([1.0]), jnp.array([1.0]))
    # |g^x|^2 = 4, |g^y|^2 = 16: x moves by 2 * 16^-0.75, y by 2 * 4 * 16^-0.25.
    state = rule.step(state, jnp.array([2.0]), jnp.array([4.0]), alone)
    np.testing.assert_allclose(state.x, [1 - 2 / 8], rtol=1e-6)
    np.testing.assert_allclose(state.y, [1 + 2 * 4 / 2], rtol=1e-6)
    assert (float(state.accum_x), float(state.accum_y)) == (4, 16)


def test_a_step_sends_one_message_with_two_numbers_beyond_the_parameters():
    sent = []

    def mix(message):
        sent.append(message)
        return message

    rule = DAdaST()
    x = {"bias": jnp.zeros(3), "kernel": jnp.zeros((2, 3))}
    state = rule.init(x, jnp.ones(4))
    rule.step(state, x, jnp.ones(4), mix)
    (message,) = sent
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(message)) == 4 * (9 + 4) + 8


def test_mixing_comes_before_the_projection():
    rule = DAdaST(start=0.0)
    state = rule.init(jnp.zeros(1), jnp.zeros(2))

    def mix(message):
        return jax.tree.map(lambda leaf: 10 * leaf, message)

    mixed = rule.step(state, jnp.zeros(1), jnp.array([3.0, 4.0]), mix, ball(1.0))
    np.testing.assert_allclose(mixed.y, [0.6, 0.8], rtol=1e-6)
    assert float(mixed.accum_y) == 250


def test_a_zero_gradient_moves_nothing_even_from_zero():
    rule = DAdaST(start=0.0)
    state = rule.init(jnp.ones(2), jnp.ones(3))
    state = rule.step(state, jnp.zeros(2), jnp.zeros(3), alone)
    np.testing.assert_array_equal(state.x, np.ones(2))
    np.testing.assert_array_equal(state.y, np.ones(3))


def test_powers_of_sums_that_are_zero_or_have_overflowed():
    base = jnp.array([0.0, 4.0, jnp.inf, jnp.nan])
    np.testing.assert_allclose(power(base, -0.5), [0, 0.5, np.nan, np.nan])


def test_a_start_that_the_scalars_cannot_hold_is_an_error():
    with pytest.raises(ConfigError, match=r"start = 1e\+300 is infinite in float32"):
        DAdaST(start=1e300).init(jnp.ones(1), jnp.ones(1))


def test_a_state_can_be_donated():
    rule = DAdaST()
    step = jax.jit(lambda state: rule.step(state, state.x, state.y, alone), donate_argnums=0)
    assert int(step(step(rule.init(jnp.ones(2), jnp.ones(3)))).step) == 2


def test_narrow_parameters_keep_their_dtype_and_accumulate_in_float32():
    rule = DAdaST()
    x, y = jnp.ones(2, jnp.bfloat16), jnp.ones(3, jnp.float32)
    state = rule.init(x, y)
    after = rule.step(state, x, y, alone)
    for states in (state, after):
        assert [leaf.dtype.name for leaf in jax.tree.leaves(states)] == [
            "bfloat16",
            *["float32"] * 3,
            "int32",
        ]


def test_numbers_are_parameters_and_states_are_trees():
    state = DAdaST().init(1.0, np.float32(2))
    assert not state.x.weak_type
    assert isinstance(jax.tree.map(lambda leaf: leaf, state), State)
    assert len(jax.tree.leaves(state)) == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gamma_x": 0}, "gamma_x must be positive and finite, not 0"),
        ({"gamma_y": -1}, "gamma_y must be positive and finite, not -1"),
        ({"gamma_y": float("inf")}, "gamma_y must be positive and finite, not inf"),
        ({"gamma_x": float("nan")}, "gamma_x must be positive and finite, not nan"),
        ({"alpha": 0.4, "beta": 0.4}, "beta < alpha.* not beta = 0.4 and alpha = 0.4"),
        ({"alpha": 1.0}, "alpha < 1"),
        ({"beta": 0.0}, "0 < beta"),
        ({"start": -1.0}, "start must be finite and not negative, not -1"),
    ],
)
def test_a_rule_out_of_range_is_an_error_that_names_the_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        DAdaST(**fields)


def test_parameters_must_be_floating_point():
    with pytest.raises(ConfigError, match=r"leaf \[0\]\['count'\] of \(x, y\) is int32"):
        DAdaST().init({"count": jnp.arange(3)}, jnp.ones(1))


def test_gradients_must_be_like_the_parameters():
    rule = DAdaST()
    state = rule.init({"w": jnp.ones(2)}, jnp.ones(3))
    with pytest.raises(ConfigError, match="the gradient in x must be a tree like x"):
        rule.step(state, jnp.ones(2), jnp.ones(3), alone)
    with pytest.raises(ConfigError, match=r"shapes of x; leaf \['w'\] has \(3,\), not \(2,\)"):
        rule.step(state, {"w": jnp.ones(3)}, jnp.ones(3), alone)
    with pytest.raises(ConfigError, match=r"shapes of y; leaf at the root has \(2,\), not \(3,\)"):
        rule.step(state, {"w": jnp.ones(2)}, jnp.ones(2), alone)
    with pytest.raises(ConfigError, match=r"in y must be real; leaf at the root is complex64"):
        rule.step(state, {"w": jnp.ones(2)}, jnp.ones(3, complex), alone)


@pytest.fixture(scope="module")
def figures():
    done = subprocess.run(
        [sys.executable, "-m", "tests.minimax.float64_figures"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_nodes_reach_the_line_of_stationary_points(figures):
    *norms, zeta = figures["two_nodes"]
    np.testing.assert_allclose([norms[0], norms[9]], [2.8e-3, 1.6e-15], rtol=0.05)
    assert norms[99] < 1e-20
    assert zeta < 1e-20


def test_without_tracking_two_nodes_stay_away_from_it():
    problem = reference.two_nodes()
    xs, ys, *_ = play_tiada(problem, DAdaST(0.1, 0.1, start=0.0), 0.0, 0.0)
    norms = [problem.squared_gradient_at_mean(xs[k], ys[k]) for k in (999, 9_999)]
    np.testing.assert_allclose(norms, [2.1e-1, 8.8e-2], rtol=0.05)


def test_only_tracking_leaves_the_frozen_construction(figures):
    for (alpha, beta), (*norms, _) in zip(FROZEN, figures["frozen"], strict=True):
        problem = reference.frozen(alpha, beta, 0.99)
        first = problem.squared_gradient_at_mean(np.full(3, 10.0), np.full(3, 9.9))
        xs, ys, *_ = play_tiada(problem, DAdaST(0.1, 0.1, alpha, beta, 0.0), 10.0, 9.9)
        stuck = [problem.squared_gradient_at_mean(x, y) for x, y in zip(xs, ys, strict=True)]
        np.testing.assert_allclose(stuck, first, rtol=1e-9)
        assert norms[-1] < first / 2
    # Of alpha 0.6, beta 0.4 after 1,000 and 10,000 steps, from 4.4.
    norms = figures["frozen"][0]
    np.testing.assert_allclose([norms[0], norms[9]], [2.7, 0.80], rtol=0.01)


def test_unlike_nodes_reach_the_saddle(figures):
    *norms, zeta = figures["heterogeneous"]
    assert norms[9] < norms[0] < 1e-5
    assert norms[9] < 1e-6
    assert zeta < 1e-4


def test_scalars_are_as_wide_as_the_parameters(figures):
    assert figures["dtype"] == "float64"


def play_tiada(problem, rule, x, y):
    """Run 10,000 steps of D-TiAda on a complete graph, from the same point at all nodes."""
    num_nodes = len(problem.a)

    def gradients(x, y):
        return tuple(one[:, None] for one in reference.gradients(problem.arrays, x[:, 0], y[:, 0]))

    begin = np.full((num_nodes, 1), x), np.full((num_nodes, 1), y)
    weights = np.full((num_nodes, num_nodes), 1 / num_nodes)
    return reference.run(rule, weights, gradients, *begin, 10_000, is_tracked=False)
