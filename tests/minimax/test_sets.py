"""Projections give the nearest point of their set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kvflow_jax.errors import ConfigError
from kvflow_jax.minimax.sets import ball, box, simplex

VECTORS = hnp.arrays(
    np.float32,
    st.sampled_from([1, 2, 5]),
    # XLA may flush subnormal numbers to 0.
    elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
)


@given(VECTORS)
def test_a_projection_onto_the_simplex_is_the_nearest_point(vector):
    projected = np.asarray(simplex(jnp.asarray(vector)), np.float64)
    assert (projected >= 0).all()
    assert projected.sum() == pytest.approx(1, abs=1e-3)
    # The nearest point of a convex set: no vertex lies on the vector's side of it.
    rest = vector - projected
    assert (rest - rest @ projected <= 1e-3 * (1 + abs(rest).max())).all()


@given(VECTORS, st.floats(0.1, 100))
def test_a_projection_onto_the_ball_shortens_what_lies_outside(vector, radius):
    projected = np.asarray(ball(radius)(jnp.asarray(vector)))
    norm = np.linalg.norm(vector.astype(np.float64))
    expected = vector * min(1, radius / norm) if norm else vector
    np.testing.assert_allclose(projected, expected, rtol=1e-5, atol=1e-30)


@given(VECTORS)
def test_a_projection_onto_the_box_clips(vector):
    np.testing.assert_array_equal(box(-1, 2.5)(jnp.asarray(vector)), np.clip(vector, -1, 2.5))


@pytest.mark.parametrize("project", [simplex, ball(2.0), box(0.0, 0.5)])
def test_a_point_of_the_set_stays(project):
    inside = jnp.array([0.5, 0.25, 0.25])
    np.testing.assert_array_equal(project(inside), inside)


def test_closed_forms_of_the_simplex():
    np.testing.assert_allclose(simplex(jnp.array([2.0, 0.0, 0.0])), [1, 0, 0])
    np.testing.assert_allclose(simplex(jnp.array([1.0, 0.5, -1.0])), [0.75, 0.25, 0])
    np.testing.assert_allclose(simplex(jnp.zeros(4)), [0.25] * 4)
    np.testing.assert_allclose(simplex(jnp.array([1e30, 1e30, 0.0])), [0.5, 0.5, 0])


def test_a_tree_is_one_vector():
    tree = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    short = ball(1.0)(tree)
    np.testing.assert_allclose(short["a"], [0.6, 0])
    np.testing.assert_allclose(short["b"], [[0.8]])
    share = simplex(tree)
    assert sum(float(leaf.sum()) for leaf in jax.tree.leaves(share)) == pytest.approx(1)
    assert float(share["b"][0, 0]) == 1
    assert box(0.0, 1.0)(tree)["b"].shape == (1, 1)


def test_a_ball_takes_vectors_whose_squares_overflow_or_vanish():
    np.testing.assert_allclose(ball(1.0)(jnp.array([3e30, 4e30])), [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(ball(1e-30)(jnp.array([3e-25, 4e-25])), [6e-31, 8e-31], rtol=1e-5)
    np.testing.assert_allclose(ball(1.0)(jnp.full(2, 3e38)), [0.5**0.5] * 2, rtol=1e-6)
    np.testing.assert_array_equal(ball(1.0)(jnp.zeros(2)), [0, 0])


@pytest.mark.parametrize("radius", [1e39, float("inf")])
def test_a_ball_can_be_larger_than_its_dtype(radius):
    vector = jnp.array([3.0, -4.0])
    np.testing.assert_array_equal(ball(radius)(vector), vector)


def test_projections_have_gradients_at_zero():
    for project in (simplex, ball(1.0), box(-1.0, 1.0)):
        assert np.isfinite(jax.jacobian(project)(jnp.zeros(3))).all()
    np.testing.assert_array_equal(jax.jacobian(ball(1.0))(jnp.zeros(2)), np.eye(2))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_dtypes_are_projected_in_float32(dtype):
    normal = np.random.default_rng(0).normal(size=100_000)
    share = simplex(jnp.asarray(normal, dtype))
    assert share.dtype == dtype
    assert np.asarray(share, np.float64).sum() == pytest.approx(1, abs=0.02)
    uniform = ball(1.0)(jnp.ones(100_000, dtype))
    np.testing.assert_allclose(np.asarray(uniform, np.float64), 1e-5**0.5, rtol=0.01)


@pytest.mark.parametrize("radius", [0, -1, float("nan")])
def test_a_ball_has_a_radius(radius):
    with pytest.raises(ConfigError, match="radius of a ball must be positive"):
        ball(radius)


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (float("nan"), 1)])
def test_a_box_has_an_inside(low, high):
    with pytest.raises(ConfigError, match="low < high"):
        box(low, high)
