"""The CPU kernels equal XLA, and are bit-identical in every batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvflow_jax.cache.pool import KVPool
from kvflow_jax.models import attention
from kvflow_jax.models.attention import AttentionMetadata
from kvflow_jax.models.families import FAMILIES
from kvflow_jax.models.kernels.cpu import build
from kvflow_jax.models.kernels.cpu.ops import NATIVE
from kvflow_jax.models.loading.builder import default_ops
from kvflow_jax.models.loading.cache_folder import default_cache_dir
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.random_params import random_params
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import XLA, XLA_ON_CPU
from tests.models import tiny
from tests.models.families.cases import CONFIGS
from tests.models.kernels.batches import RaggedBatch, with_nan_past_contexts
from tests.support.tiers import slow_except

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu" or not build.register(default_cache_dir()),
    reason="needs a CPU and a C++ compiler",
)


@pytest.mark.parametrize(("num_in", "num_out"), [(1, 1), (7, 24), (64, 100), (577, 48), (96, 23)])
@pytest.mark.parametrize("num_rows", slow_except([1, 2, 3, 4, 7, 8, 130, 259], 1, 7, 130))
def test_linear_equals_a_matrix_product(num_in, num_out, num_rows):
    rng = np.random.default_rng(num_rows)
    x = rng.standard_normal((num_rows, num_in), np.float32)
    weight = rng.standard_normal((num_in, num_out), np.float32)
    packed = NATIVE.pack(weight)
    assert packed.shape == NATIVE.packed_shape(num_in, num_out)
    np.testing.assert_array_equal(packed, NATIVE.pack(jnp.asarray(weight)))
    linear = jax.jit(NATIVE.linear, static_argnums=2)
    y = np.asarray(linear(x, packed, num_out))
    exact = x.astype(np.float64) @ weight.astype(np.float64)
    bound = 1e-6 * (np.abs(x).astype(np.float64) @ np.abs(weight).astype(np.float64)).max()
    np.testing.assert_allclose(y, exact, atol=bound)
    # A row is bit-identical whatever the other rows are.
    np.testing.assert_array_equal(linear(x[-1:], packed, num_out)[0], y[-1])


def test_tables_are_looked_up_and_projected():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((50, 32), np.float32)
    packed = jnp.asarray(NATIVE.pack_table(table))
    assert packed.shape == NATIVE.table_shape(50, 32)
    rows = np.array([0, 49, 24, 23, 7], np.int32)
    np.testing.assert_array_equal(NATIVE.lookup(packed, rows), table[rows])
    x = rng.standard_normal((3, 32), np.float32)
    np.testing.assert_allclose(NATIVE.project(x, packed, 50), x @ table.T, atol=1e-5)


HEADS = [(4, 4, 16), (9, 3, 64), (8, 1, 32), (32, 2, 128), (6, 3, 80), (4, 2, 256)]


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("page_size", slow_except([1, 7, 16, 128], 16))
def test_attention_of_ragged_batches_equals_the_reference(heads, page_size):
    batch = RaggedBatch(
        heads,
        page_size,
        decode=[1, 300, 0, 17, 256, 257],
        tiles=[(0, 40), (100, 33), (5, 1), (0, 0), (250, 40)],
        tile=40,
    )
    expected, expected_pool = batch.attend(attention.attend_reference)
    out, pool = batch.attend(NATIVE.attend)
    np.testing.assert_allclose(out, expected, atol=1e-4)
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
def test_attention_with_a_window_equals_the_reference(heads, window):
    batch = RaggedBatch(
        heads,
        16,
        decode=[1, 300, 0, 17, 700],
        tiles=[(0, 40), (100, 33), (5, 1), (0, 0), (450, 40)],
        tile=40,
        window=window,
    )
    expected, _ = batch.attend(attention.attend_reference)
    out, _ = batch.attend(NATIVE.attend)
    np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize("attend", ["reference", "xla", "native"])
def test_stale_values_past_a_context_do_not_matter(attend):
    batch = RaggedBatch((9, 3, 64), 16, decode=[5, 300], tiles=[(0, 9), (250, 40)], tile=40)
    implementation = {
        "reference": attention.attend_reference,
        "xla": attention.attend,
        "native": NATIVE.attend,
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
    out, _ = batch.attend(NATIVE.attend)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("window", [0, 300])
def test_a_row_of_attention_does_not_depend_on_its_batch(window):
    alone = RaggedBatch((9, 3, 64), 16, decode=[600], tiles=[], tile=32, window=window)
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
    expected, _ = alone.attend(NATIVE.attend)
    attend = jax.jit(partial(NATIVE.attend, config=alone.config))
    out, _ = attend(alone.layer, *qkv, crowd, alone.pool)
    for row in np.asarray(out):
        np.testing.assert_array_equal(row, expected[0])


@pytest.mark.parametrize("window", [0, 1, 33, 140])
def test_attention_of_a_prompt_does_not_depend_on_its_tiles(window):
    whole = RaggedBatch((9, 3, 64), 16, decode=[], tiles=[(0, 390)], tile=390, window=window)
    expected, _ = whole.attend(NATIVE.attend)
    written = KVPool(jnp.asarray(whole.attend(NATIVE.attend)[1]), whole.spec)
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
        attend = jax.jit(partial(NATIVE.attend, config=whole.config))
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
    assert default_ops(config, "float32", tmp_path) is NATIVE
    assert default_ops(config, "bfloat16", tmp_path) == XLA_ON_CPU
    odd = read_config(CONFIGS["llama"] | {"head_dim": 20})
    assert default_ops(odd, "float32", tmp_path) == XLA_ON_CPU
