"""Rotary position embedding: frequencies of every kind, and the rotation."""

import jax.numpy as jnp
import numpy as np
import pytest

from kvflow_jax.models.rope import RopeConfig, inverse_frequencies, rope_angles, rotate

HEAD_DIM = 16
PLAIN = inverse_frequencies(RopeConfig(), HEAD_DIM)


def angles_at(rope, positions):
    cos, sin = rope_angles([rope], HEAD_DIM, jnp.asarray(positions, jnp.int32))
    return cos[0], sin[0]


def test_frequencies_fall_geometrically_from_one():
    np.testing.assert_allclose(PLAIN[0], 1.0)
    np.testing.assert_allclose(PLAIN[1:] / PLAIN[:-1], 10_000.0 ** (-2 / HEAD_DIM), rtol=1e-6)


def test_linear_scaling_divides_every_frequency():
    rope = RopeConfig(kind="linear", factor=4.0)
    np.testing.assert_allclose(inverse_frequencies(rope, HEAD_DIM), PLAIN / 4, rtol=1e-6)


@pytest.mark.parametrize("kind", ["llama3", "yarn"])
def test_long_wavelengths_are_scaled_and_short_ones_kept(kind):
    rope = RopeConfig(kind=kind, factor=8.0, original_max_len=1024)
    ratio = inverse_frequencies(rope, HEAD_DIM) / PLAIN
    np.testing.assert_allclose(ratio[[0, -1]], [1.0, 1 / 8], rtol=1e-6)
    assert (np.diff(ratio) <= 1e-6).all()
    assert ((ratio > 0.13) & (ratio < 0.99)).any()  # interpolated in between


def test_longrope_divides_each_frequency_by_its_own_factor():
    factors = tuple(1.0 + i for i in range(HEAD_DIM // 2))
    rope = RopeConfig(kind="longrope", factors=factors)
    np.testing.assert_allclose(inverse_frequencies(rope, HEAD_DIM), PLAIN / factors, rtol=1e-6)


def test_the_served_length_selects_the_factors_of_longrope():
    rope = RopeConfig(kind="longrope", original_max_len=32, factors=(9.0,), short_factors=(1.0,))
    assert rope.for_len(32).factors == (1.0,)
    assert rope.for_len(33) is rope
    assert RopeConfig().for_len(1) == RopeConfig()


def test_scores_depend_only_on_the_distance_of_query_and_key():
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, HEAD_DIM)).astype(np.float32)

    def score(query_position, key_position):
        query = rotate(q, *angles_at(RopeConfig(), [query_position]))
        return float((query * rotate(k, *angles_at(RopeConfig(), [key_position]))).sum())

    np.testing.assert_allclose(score(1007, 1000), score(7, 0), rtol=1e-4)
    assert abs(score(8, 0) - score(7, 0)) > 1e-3


def test_position_zero_is_not_rotated():
    x = np.random.default_rng(0).normal(size=(1, 2, HEAD_DIM)).astype(np.float32)
    np.testing.assert_array_equal(rotate(x, *angles_at(RopeConfig(), [0])), x)


def test_dimensions_past_the_rotary_fraction_are_kept():
    rope = RopeConfig(rotary_fraction=0.75)
    x = np.random.default_rng(0).normal(size=(1, 2, HEAD_DIM)).astype(np.float32)
    out = np.asarray(rotate(x, *angles_at(rope, [5])))
    assert rope.rotary_dim(HEAD_DIM) == 12
    np.testing.assert_array_equal(out[..., 12:], x[..., 12:])
    assert (out[..., :12] != x[..., :12]).all()


def test_the_attention_factor_scales_cosines_and_sines():
    cos, sin = angles_at(RopeConfig(), [3])
    scaled_cos, scaled_sin = angles_at(RopeConfig(attention_factor=1.5), [3])
    np.testing.assert_allclose(scaled_cos, 1.5 * cos, rtol=1e-6)
    np.testing.assert_allclose(scaled_sin, 1.5 * sin, rtol=1e-6)
