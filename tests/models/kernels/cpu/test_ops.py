"""The CPU kernels equal XLA, and are bit-identical in every batch."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvflow_jax.cache.pool import KVPool
from kvflow_jax.errors import ConfigError
from kvflow_jax.models import attention
from kvflow_jax.models.activations import gate
from kvflow_jax.models.attention import AttentionMetadata
from kvflow_jax.models.families import FAMILIES
from kvflow_jax.models.kernels.cpu.formats import FEW_ROWS
from kvflow_jax.models.loading.builder import default_ops
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.random_params import random_params
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import XLA, XLA_ON_CPU, XlaOps
from tests.models import tiny
from tests.models.families.cases import CONFIGS
from tests.models.kernels.batches import RaggedBatch, with_nan_past_contexts, without_rope
from tests.support.native import has_kernels, native_ops
from tests.support.tiers import slow_except

if not has_kernels():
    pytest.skip("needs a CPU and a C++ compiler", allow_module_level=True)

NATIVE = native_ops()
ATTEND = without_rope(NATIVE)
WEIGHTS = ("float32", "bfloat16", "int8", "int4")
# Of the sum of the absolute products: rounding of sums, of both operands, and to 1/127 of the
# largest of 32 values or 1/15 of their range.
LINEAR_ERROR = {"float32": 1e-6, "bfloat16": 5e-3, "int8": 2**-7, "int4": 2**-3}
ATTENTION_ERROR = {"float32": 1e-4, "bfloat16": 0.1}


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("num_in", "num_out"), [(1, 1), (7, 24), (64, 100), (577, 48), (96, 23)])
@pytest.mark.parametrize("num_rows", slow_except([1, 2, 3, 4, 7, 8, 17, 130, 259], 1, 7, 130))
def test_linear_equals_a_matrix_product(num_in, num_out, num_rows, weights):
    ops = native_ops(weights)
    rng = np.random.default_rng(num_rows)
    x = rng.standard_normal((num_rows, num_in), np.float32)
    weight = rng.standard_normal((num_in, num_out), np.float32)
    packed = ops.pack(weight)
    linear = jax.jit(ops.linear, static_argnums=2)
    y = np.asarray(linear(x, packed, num_out))
    exact = x.astype(np.float64) @ weight.astype(np.float64)
    bound = (np.abs(x).astype(np.float64) @ np.abs(weight).astype(np.float64)).max()
    np.testing.assert_allclose(y, exact, atol=LINEAR_ERROR[weights] * bound)
    # A row is bit-identical whatever the other rows are, as long as the kernel is the same.
    alone = x[-1:]
    if weights.startswith("int") and num_rows > FEW_ROWS:
        alone = np.repeat(alone, FEW_ROWS + 1, axis=0)
    np.testing.assert_array_equal(linear(alone, packed, num_out)[0], y[-1])


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("num_rows", [FEW_ROWS - 1, 33])
def test_a_product_is_exact_for_what_the_bits_hold(num_rows, weights):
    rng = np.random.default_rng(0)
    x = rng.integers(-126, 127, (num_rows, 100))
    most = 15 if weights == "int4" else 127
    weight = rng.integers(0 if weights == "int4" else -126, most, (100, 70))
    # In every block of 32 rows: the steps are whole numbers then.
    weight[::32], weight[1::32] = most, 0
    y = jax.jit(native_ops(weights).linear, static_argnums=2)(
        x.astype(np.float32), native_ops(weights).pack(weight.astype(np.float32)), 70
    )
    np.testing.assert_array_equal(y, x @ weight)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("num_rows", "num_out"), [(3, 96), (130, 70)])
def test_a_residual_is_added_to_the_product(num_rows, num_out, weights):
    ops = native_ops(weights)
    rng = np.random.default_rng(0)
    x, residual = (rng.standard_normal((num_rows, n), np.float32) for n in (64, num_out))
    packed = ops.pack(rng.standard_normal((64, num_out), np.float32))
    y = jax.jit(ops.linear, static_argnums=2)(x, packed, num_out)
    total = jax.jit(ops.linear_add, static_argnums=2)(x, packed, num_out, residual)
    np.testing.assert_array_equal(total, np.asarray(y) + residual)


@pytest.mark.parametrize("shape", [(1, 16), (70, 577), (5, 3, 80)])
def test_the_norm_equals_that_of_xla(shape):
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, np.float32)
    weight = jnp.asarray(rng.standard_normal(shape[-1:]), jnp.bfloat16)
    for scale in (1e-3, 1.0, 1e3):
        y = jax.jit(partial(NATIVE.rms_norm, eps=1e-5))(scale * x, weight)
        np.testing.assert_allclose(y, XLA.rms_norm(scale * x, weight, 1e-5), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("heads", "rotary_dim"), [((9, 3, 64), 64), ((4, 4, 16), 16), ((6, 3, 80), 40), ((4, 2, 64), 6)]
)
def test_rotation_and_written_keys_equal_those_of_xla(heads, rotary_dim, dtype):
    batch = RaggedBatch(
        heads, 16, decode=[5, 0, 300], tiles=[(0, 40), (100, 33)], tile=40, dtype=dtype
    )
    qkv = np.concatenate(batch.qkv, axis=1)
    angles = np.random.default_rng(1).uniform(0, 7, (len(qkv), 1, rotary_dim // 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    found = []
    for ops in (XlaOps(attention.attend_reference, "cpu"), NATIVE):
        attend = jax.jit(partial(ops.rotate_and_attend, config=batch.config))
        out, pool = attend(batch.layer, qkv, (cos, sin), batch.metadata, batch.pool)
        data = np.asarray(pool.data)
        found.append((out, data.view(jnp.bfloat16) if dtype == "bfloat16" else data))
    (expected, expected_data), (out, data) = found
    np.testing.assert_allclose(out, expected, atol=ATTENTION_ERROR[dtype])
    # Fused multiply-adds round differently, in bfloat16 to a neighbour.
    np.testing.assert_allclose(
        data.astype(np.float32),
        expected_data.astype(np.float32),
        rtol=2**-7 if dtype == "bfloat16" else 0,
        atol=1e-6 if dtype == "float32" else 1e-3,
    )


def test_the_pool_is_written_in_place():
    batch = RaggedBatch((9, 3, 64), 16, decode=[5], tiles=[], tile=40)
    qkv = np.concatenate(batch.qkv, axis=1)
    angles = np.zeros((2, len(qkv), 1, 32), np.float32)
    attend = jax.jit(partial(NATIVE.rotate_and_attend, config=batch.config), donate_argnums=4)
    lowered = attend.lower(batch.layer, qkv, tuple(angles), batch.metadata, batch.pool)
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < batch.pool.data.nbytes // 4


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("num_rows", "width"), [(1, 96), (130, 96), (5, 40)])
def test_a_gated_product_equals_one_of_xla(num_rows, width, activation, weights):
    ops = native_ops(weights)
    rng = np.random.default_rng(num_rows)
    x = 3 * rng.standard_normal((num_rows, 65), np.float32)
    packed = ops.pack(rng.standard_normal((65, 2 * width), np.float32))
    gated = jax.jit(ops.gated, static_argnums=(2, 3))(x, packed, width, activation)
    gate_up = jax.jit(ops.linear, static_argnums=2)(x, packed, 2 * width)
    np.testing.assert_allclose(gated, gate(gate_up, activation), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("num_rows", [3, 9])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_what_is_not_finite_stays_in_its_row(weights, num_rows, value):
    ops = native_ops(weights)
    x = np.ones((num_rows, 40), np.float32)
    x[1, 7] = value
    y = np.asarray(jax.jit(ops.linear, static_argnums=2)(x, ops.pack(np.eye(40, 33)), 33))
    assert not np.isfinite(y[1]).all()
    assert np.isfinite(np.delete(y, 1, axis=0)).all()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_tables_are_looked_up_and_projected(weights):
    ops = native_ops(weights)
    rng = np.random.default_rng(0)
    table = rng.standard_normal((50, 31), np.float32)
    packed = jnp.asarray(ops.pack_table(table))
    rows = np.array([0, 49, 24, 23, 7], np.int32)
    atol = {"float32": 0, "bfloat16": 2**-7, "int8": 2**-6, "int4": 2**-2}[weights]
    np.testing.assert_allclose(ops.lookup(packed, rows, 31), table[rows], atol=atol)
    x = rng.standard_normal((3, 31), np.float32)
    bound = (np.abs(x) @ np.abs(table.T)).max()
    np.testing.assert_allclose(
        ops.project(x, packed, 50), x @ table.T, atol=LINEAR_ERROR[weights] * bound
    )


HEADS = [(4, 4, 16), (9, 3, 64), (8, 1, 32), (32, 2, 128), (6, 3, 80), (4, 2, 256)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("page_size", slow_except([1, 7, 16, 128], 16))
def test_attention_of_ragged_batches_equals_the_reference(heads, page_size, dtype):
    batch = RaggedBatch(
        heads,
        page_size,
        decode=[1, 300, 0, 17, 256, 257],
        tiles=[(0, 40), (100, 33), (5, 1), (0, 0), (250, 40)],
        tile=40,
        dtype=dtype,
    )
    expected, expected_pool = batch.attend(attention.attend_reference)
    out, pool = batch.attend(ATTEND)
    np.testing.assert_allclose(out, expected, atol=ATTENTION_ERROR[dtype])
    np.testing.assert_array_equal(pool, expected_pool)


@pytest.mark.parametrize(
    ("heads", "window"),
    slow_except(
        [
            *(((9, 3, 64), window) for window in (1, 16, 256, 1000)),
            *((heads, 130) for heads in HEADS),
        ],
        ((9, 3, 64), 16),
        ((8, 1, 32), 130),
    ),
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_with_a_window_equals_the_reference(heads, window, dtype):
    batch = RaggedBatch(
        heads,
        16,
        decode=[1, 300, 0, 17, 700],
        tiles=[(0, 40), (100, 33), (5, 1), (0, 0), (450, 40)],
        tile=40,
        window=window,
        dtype=dtype,
    )
    expected, _ = batch.attend(attention.attend_reference)
    out, _ = batch.attend(ATTEND)
    np.testing.assert_allclose(out, expected, atol=ATTENTION_ERROR[dtype])


@pytest.mark.parametrize("attend", ["reference", "xla", "native"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stale_values_past_a_context_do_not_matter(attend, dtype):
    batch = RaggedBatch(
        (9, 3, 64), 16, decode=[5, 300], tiles=[(0, 9), (250, 40)], tile=40, dtype=dtype
    )
    implementation = {
        "reference": attention.attend_reference,
        "xla": attention.attend,
        "native": ATTEND,
    }[attend]
    expected, _ = batch.attend(implementation)
    out, _ = with_nan_past_contexts(batch).attend(implementation)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("decode", "tiles"), [([5], []), ([], [(0, 9)]), ([], [(511, 1)]), ([0, 0], [(0, 0)])]
)
def test_attention_of_decode_rows_or_tiles_alone(decode, tiles):
    batch = RaggedBatch((9, 3, 64), 16, decode=decode, tiles=tiles, tile=16)
    expected, _ = batch.attend(attention.attend_reference)
    out, _ = batch.attend(ATTEND)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("window", [0, 300])
def test_a_row_of_attention_does_not_depend_on_its_batch(window, dtype):
    alone = RaggedBatch((9, 3, 64), 16, decode=[600], tiles=[], tile=32, window=window, dtype=dtype)
    metadata, num_rows = alone.metadata, 5

    def repeated(x):
        return jnp.concatenate([x] * num_rows)

    crowd = AttentionMetadata(
        repeated(metadata.page_table),
        repeated(metadata.query_start),
        repeated(metadata.query_len),
        repeated(metadata.write_kv_slots),
        num_decode=num_rows,
        tile=32,
    )
    qkv = [repeated(x) for x in alone.qkv]
    expected, _ = alone.attend(ATTEND)
    attend = jax.jit(partial(ATTEND, config=alone.config))
    out, _ = attend(alone.layer, *qkv, crowd, alone.pool)
    for row in np.asarray(out):
        np.testing.assert_array_equal(row, expected[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("window", [0, 1, 33, 140])
def test_attention_of_a_prompt_does_not_depend_on_its_tiles(window, dtype):
    whole = RaggedBatch(
        (9, 3, 64), 16, decode=[], tiles=[(0, 390)], tile=390, window=window, dtype=dtype
    )
    expected, _ = whole.attend(ATTEND)
    written = KVPool(jnp.asarray(whole.attend(ATTEND)[1]), whole.spec)
    q = whole.qkv[0]
    for start, end in ((0, 1), (1, 33), (33, 90), (90, 301), (301, 390)):
        metadata = AttentionMetadata(
            whole.metadata.page_table,
            jnp.asarray([start], jnp.int32),
            jnp.asarray([end - start], jnp.int32),
            jnp.full(end - start, whole.spec.num_kv_slots, jnp.int32),
            num_decode=0,
            tile=end - start,
        )
        qkv = [x[start:end] for x in (q, *whole.qkv[1:])]
        attend = jax.jit(partial(ATTEND, config=whole.config))
        out, _ = attend(whole.layer, *qkv, metadata, written)
        np.testing.assert_array_equal(out, expected[start:end])


@pytest.mark.parametrize("name", slow_except(FAMILIES, "gemma3"))
def test_models_equal_those_of_xla(name):
    config = read_config({**FAMILIES[name].tiny, "head_dim": 16})
    tokens = tiny.prompt_tokens(40)
    logits = []
    for ops in (XLA, NATIVE):
        model = Model.build(config, ops=ops)
        sequence = tiny.Sequence(model, random_params(model, seed=3), 60)
        logits.append(np.concatenate([sequence.feed(tokens, 48), sequence.feed([5])]))
    np.testing.assert_allclose(*logits, atol=1e-4)


def test_they_are_chosen_if_they_support_the_model(tmp_path):
    config = read_config(CONFIGS["llama"] | {"head_dim": 64})
    assert default_ops(config, "float32", tmp_path) == NATIVE
    assert default_ops(config, "bfloat16", tmp_path) == native_ops("bfloat16")
    assert default_ops(config, "bfloat16", tmp_path, quantize="int8") == native_ops("int8")
    assert default_ops(config, "float16", tmp_path) == XLA_ON_CPU
    odd = read_config(CONFIGS["llama"] | {"head_dim": 20})
    assert default_ops(odd, "float32", tmp_path) == XLA_ON_CPU
    int8 = default_ops(odd, "float32", tmp_path, quantize="int8")
    assert int8 == replace(XLA_ON_CPU, quantize="int8")
    with pytest.raises(ConfigError, match="--quantize int4 needs the CPU kernels"):
        default_ops(odd, "float32", tmp_path, quantize="int4")
