"""Linear, embedding, norm and MLP against numpy."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kvflow_jax.models.layers import Embedding, GatedMLP, HeadsNorm, Linear, RMSNorm, normalise
from kvflow_jax.models.ops import XLA, XlaOps

OPTIONS = {"dtype": jnp.dtype("float32"), "rngs": nnx.Rngs(0)}
X = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)


@dataclass(frozen=True)
class TwoEqualShards(XlaOps):
    """An all-reduce over two devices with the same partial product."""

    def all_reduce(self, part):
        return 2 * part


def test_linear_multiplies_and_adds_the_bias():
    linear = Linear(8, 5, bias=True, ops=XLA, **OPTIONS)
    linear.bias[...] = jnp.arange(5.0)
    expected = X @ np.asarray(linear.weight[...]) + np.arange(5)
    np.testing.assert_allclose(linear(X), expected, atol=1e-6)


def test_a_row_parallel_linear_adds_its_bias_after_the_all_reduce():
    linear = Linear(8, 5, bias=True, ops=TwoEqualShards(), row_parallel=True, **OPTIONS)
    linear.bias[...] = jnp.arange(5.0)
    expected = 2 * (X @ np.asarray(linear.weight[...])) + np.arange(5)
    np.testing.assert_allclose(linear(X), expected, atol=1e-6)


def test_a_column_parallel_linear_has_no_all_reduce():
    linear = Linear(8, 5, bias=False, ops=TwoEqualShards(), **OPTIONS)
    np.testing.assert_allclose(linear(X), X @ np.asarray(linear.weight[...]), atol=1e-6)


def test_an_embedding_is_a_lookup_and_an_output_projection():
    embedding = Embedding(10, 8, ops=XLA, **OPTIONS)
    table = np.asarray(embedding.weight[...])
    np.testing.assert_array_equal(embedding(jnp.array([3, 9, 3])), table[[3, 9, 3]])
    np.testing.assert_allclose(embedding.logits(X), X @ table.T, atol=1e-6)


def test_a_norm_does_not_overflow_low_precision():
    """300 squared is past the largest float16."""
    norm = RMSNorm(4, eps=1e-6, ops=XLA, dtype=jnp.dtype("float16"))
    out = norm(jnp.array([300, -300, 300, -300], jnp.float16))
    assert out.dtype == jnp.float16
    np.testing.assert_allclose(out, [1, -1, 1, -1], atol=1e-3)


def test_a_norm_over_heads_is_one_over_the_whole_projection():
    heads, weight = X.reshape(3, 2, 4), np.arange(8, dtype=np.float32)
    norm = HeadsNorm(2, head_dim=4, eps=1e-6, ops=XLA, dtype=jnp.dtype("float32"))
    norm.weight[...] = jnp.asarray(weight)
    expected = X / np.sqrt(np.mean(X**2, axis=-1, keepdims=True) + 1e-6) * weight
    np.testing.assert_allclose(norm(jnp.asarray(heads)).reshape(3, 8), expected, atol=1e-5)


def test_a_norm_over_heads_counts_those_of_other_devices():
    """Two devices with the same heads have the mean of either."""
    norms = [
        HeadsNorm(2, head_dim=4, eps=1e-6, ops=ops, dtype=jnp.dtype("float32"))
        for ops in (XLA, TwoEqualShards())
    ]
    one, two = (norm(jnp.asarray(X.reshape(3, 2, 4))) for norm in norms)
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_a_norm_that_a_model_does_not_have_changes_nothing():
    assert normalise(None, X) is X


@pytest.mark.parametrize(
    ("activation", "gate_function"),
    [
        ("silu", lambda x: x / (1 + np.exp(-x))),
        (
            "gelu_tanh",
            lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        ),
    ],
)
def test_a_gated_mlp_multiplies_the_activated_gate_with_up(activation, gate_function):
    mlp = GatedMLP(8, 6, activation=activation, bias=False, ops=XLA, **OPTIONS)
    gate_up = 40 * np.asarray(mlp.gate_up_proj.weight[...])
    mlp.gate_up_proj.weight[...] = jnp.asarray(gate_up)
    gate, up = np.split(X @ gate_up, 2, axis=-1)
    expected = (gate_function(gate) * up) @ np.asarray(mlp.down_proj.weight[...])
    np.testing.assert_allclose(mlp(X), expected, atol=1e-5)
