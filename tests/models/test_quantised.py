"""Weights in 8 bits, computed by XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.random_params import random_params
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import XlaOps
from kvflow_jax.models.quantised import CPU_BLOCK, Int8Array
from tests.models import tiny
from tests.models.families.cases import CONFIGS

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(40, CPU_BLOCK + 30)).astype(np.float32)
OPS = [XlaOps(platform=platform, quantize="int8") for platform in ("cpu", "gpu", "tpu")]


def floats(weight):
    return np.asarray(weight.qvalue, np.float32) * np.asarray(weight.scale, np.float32)


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, jnp.bfloat16])
def test_floats_are_rounded_to_half_a_step(axis, dtype):
    weight = jnp.asarray(WEIGHT, dtype)
    kept = Int8Array.quantise(weight, axis)
    assert (kept.qvalue.dtype, kept.dtype, kept.shape) == (np.int8, dtype, WEIGHT.shape)
    steps = np.abs(floats(kept) - np.asarray(weight, np.float32)) / kept.scale.astype(np.float32)
    # A scale that is rounded down clips the largest value.
    assert steps.max() <= (0.5 + 1e-4 if dtype == np.float32 else 1)


def test_zeros_stay_zeros_and_other_than_finite_numbers_are_kept_in_the_scale():
    weight = np.zeros((4, 3), np.float32)
    weight[1, 1], weight[2, 2] = np.nan, np.inf
    kept = Int8Array.quantise(weight, -2)
    assert not kept.qvalue.any()
    np.testing.assert_array_equal(kept.scale, [[0, np.nan, np.nan]])
    assert OPS[0].floats(kept) is kept.scale


@pytest.mark.parametrize("ops", OPS, ids=lambda ops: ops.platform)
def test_products_are_those_of_the_rounded_floats(ops):
    x = RNG.normal(size=(3, 40)).astype(np.float32)
    weight, table = ops.pack(jnp.asarray(WEIGHT)), ops.pack_table(jnp.asarray(WEIGHT.T))
    num_out = WEIGHT.shape[1]
    np.testing.assert_allclose(ops.linear(x, weight, num_out), x @ floats(weight), atol=1e-3)
    np.testing.assert_allclose(ops.project(x, table, num_out), x @ floats(table).T, atol=1e-3)
    rows = ops.lookup(table, jnp.array([7, num_out]), 40)
    np.testing.assert_array_equal(rows, floats(table)[[7, -1]])


@pytest.mark.parametrize("ops", OPS, ids=lambda ops: ops.platform)
def test_activations_of_16_bits_stay_so(ops):
    weight = ops.pack(jnp.asarray(WEIGHT, jnp.bfloat16))
    x = jnp.ones((2, 40), ops.hidden_dtype("bfloat16"))
    assert ops.linear(x, weight, WEIGHT.shape[1]).dtype == x.dtype


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_model_computes_nearly_the_same_in_a_quarter_of_the_memory(platform):
    tokens, logits, sizes = tiny.prompt_tokens(20), [], []
    for quantize in ("none", "int8"):
        ops = XlaOps(platform=platform, quantize=quantize)
        model = Model.build(read_config(CONFIGS["llama-untied-mha"]), ops=ops)
        params = random_params(model, seed=3)
        assert sum(array.nbytes for array in jax.tree.leaves(params)) == model.weights_bytes
        logits.append(tiny.Sequence(model, params, 32).feed(tokens, 24))
        sizes.append(model.weights_bytes)
    np.testing.assert_allclose(*logits, atol=0.05 * np.abs(logits[0]).max())
    assert sizes[1] < 0.3 * sizes[0]
