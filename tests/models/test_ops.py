"""The operations compiled by XLA, with plain weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from kvflow_jax.models.ops import XLA, XLA_ON_CPU, XLA_ON_GPU

RNG = np.random.default_rng(0)
TABLE = RNG.normal(size=(5, 4)).astype(np.float32)


def test_weights_stay_plain():
    assert XLA.pack(TABLE) is TABLE
    assert XLA.pack_table(TABLE) is TABLE


def test_a_lookup_past_the_table_gives_its_last_row():
    np.testing.assert_array_equal(
        XLA.lookup(jnp.asarray(TABLE), jnp.array([0, 7]), 4), TABLE[[0, 4]]
    )


def test_logits_are_float32_in_every_dtype():
    x, table = jnp.asarray(TABLE[:2], jnp.bfloat16), jnp.asarray(TABLE, jnp.bfloat16)
    logits = XLA.project(x, table, 5)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, TABLE[:2] @ TABLE.T, atol=0.05)


def test_one_device_has_the_whole_product():
    np.testing.assert_array_equal(XLA.all_reduce(TABLE), TABLE)


@pytest.mark.parametrize("ops", [XLA, XLA_ON_CPU], ids=lambda ops: ops.platform)
def test_a_ragged_product_has_a_matrix_per_run_of_rows(ops):
    x, weight = RNG.normal(size=(6, 3)), RNG.normal(size=(3, 3, 2))
    num_rows = np.array([4, 0, 2], np.int32)
    out = ops.ragged_dot(
        jnp.asarray(x, jnp.float32), jnp.asarray(weight, jnp.float32), jnp.asarray(num_rows)
    )
    expected = np.concatenate([x[:4] @ weight[0], x[4:] @ weight[2]])
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_only_tpus_scan_layers_and_only_gpus_run_every_expert():
    assert [ops.unroll for ops in (XLA, XLA_ON_CPU, XLA_ON_GPU)] == [False, True, True]
    assert [ops.dense_experts for ops in (XLA, XLA_ON_CPU, XLA_ON_GPU)] == [False, False, True]
