"""The CPU kernels against what XLA computes, and against themselves in other batches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.models import attention
from kvflow_jax.models.attention import AttentionMetadata
from kvflow_jax.models.config import AttentionKind
from kvflow_jax.models.kernels.cpu import build
from kvflow_jax.models.kernels.cpu.ops import NATIVE
from kvflow_jax.models.loading.checkpoint import default_cache_dir
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.load import default_ops
from kvflow_jax.models.loading.random_params import random_params
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import XLA, XLA_ON_CPU
from tests.models import tiny

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu" or not build.register(default_cache_dir()),
    reason="needs a CPU and a C++ compiler",
)


@pytest.mark.parametrize(("num_in", "num_out"), [(1, 1), (7, 24), (64, 100), (577, 48), (96, 23)])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 7, 8, 130, 259])
def test_linear(num_in, num_out, num_rows):
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
    # A row is the same to the bit whatever stands beside it.
    np.testing.assert_array_equal(linear(x[-1:], packed, num_out)[0], y[-1])


def test_tables():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((50, 32), np.float32)
    packed = jnp.asarray(NATIVE.pack_table(table))
    assert packed.shape == NATIVE.table_shape(50, 32)
    rows = np.array([0, 49, 24, 23, 7], np.int32)
    np.testing.assert_array_equal(NATIVE.lookup(packed, rows), table[rows])
    x = rng.standard_normal((3, 32), np.float32)
    np.testing.assert_allclose(NATIVE.project(x, packed, 50), x @ table.T, atol=1e-5)


HEADS = [(4, 4, 16), (9, 3, 64), (8, 1, 32), (32, 2, 128), (6, 3, 80), (4, 2, 256)]


class Case:
    """Sequences of given lengths in a shuffled pool, and rows that ask about them."""

    def __init__(self, heads, page_size, *, decode, tiles, tile, window=0):
        rng = np.random.default_rng(0)
        num_heads, kv_heads, head_dim = heads
        # Its layer is the second: the others' windows must not matter to it.
        self.kind = AttentionKind(head_dim**-0.5, (1, window, 2) if window else (0, 0, 0))
        lens = [*decode, *(start + length for start, length in tiles)]
        pages_per_seq = max(1, -(-max(lens) // page_size)) + 1
        num_pages = 1 + len(lens) * pages_per_seq
        self.spec = PoolSpec(3, num_pages, page_size, kv_heads, head_dim)
        data = rng.standard_normal(KVPool.zeros(self.spec).data.shape, np.float32)
        self.pool = KVPool(jnp.asarray(data), self.spec)
        self.layer = jnp.int32(1)
        self.kind = AttentionKind(head_dim**-0.5, (0, 0, 0))
        table = 1 + rng.permutation(num_pages - 1).reshape(len(lens), -1).astype(np.int32)
        starts = [max(0, n - 1) for n in decode] + [start for start, _ in tiles]
        query_lens = [min(1, n) for n in decode] + [length for _, length in tiles]
        num_tokens = len(decode) + len(tiles) * tile
        slots = np.full(num_tokens, self.spec.num_kv_slots, np.int32)
        at = 0
        for row in range(len(lens)):
            width = 1 if row < len(decode) else tile
            for i in range(query_lens[row]):
                position = starts[row] + i
                page = table[row, position // page_size]
                slots[at + i] = page * page_size + position % page_size
            at += width
        self.rows = AttentionMetadata(
            page_table=jnp.asarray(table),
            query_start=jnp.asarray(starts, jnp.int32),
            query_len=jnp.asarray(query_lens, jnp.int32),
            write_kv_slots=jnp.asarray(slots),
            num_decode=len(decode),
            tile=tile,
        )
        shape = (num_tokens, num_heads + 2 * kv_heads, head_dim)
        qkv = 2 * rng.standard_normal(shape, np.float32)
        self.qkv = np.split(qkv, [num_heads, num_heads + kv_heads], axis=1)

    def attend(self, attend):
        attend = jax.jit(partial(attend, kind=self.kind))
        out, pool = attend(self.layer, *self.qkv, self.rows, self.pool)
        return np.asarray(out), np.asarray(pool.data)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("page_size", [1, 7, 16, 128])
def test_attention_of_ragged_batches(heads, page_size):
    case = Case(
        heads,
        page_size,
        decode=[1, 300, 0, 17, 256, 257],
        tiles=[(0, 40), (100, 33), (5, 1), (0, 0), (250, 40)],
        tile=40,
    )
    expected, expected_pool = case.attend(attention.attend_reference)
    out, pool = case.attend(NATIVE.attend)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    np.testing.assert_array_equal(pool, expected_pool)


@pytest.mark.parametrize(
    ("heads", "window"),
    [*(((9, 3, 64), window) for window in (1, 16, 256, 1000)), *((heads, 130) for heads in HEADS)],
)
def test_attention_within_a_window(heads, window):
    case = Case(
        heads,
        16,
        decode=[1, 300, 0, 17, 700],
        tiles=[(0, 40), (100, 33), (5, 1), (0, 0), (450, 40)],
        tile=40,
        window=window,
    )
    expected, _ = case.attend(attention.attend_reference)
    out, _ = case.attend(NATIVE.attend)
    np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize("attend", ["reference", "xla", "native"])
def test_what_a_page_held_before_does_not_matter(attend):
    """Past a context's end pages hold what their last owners wrote, numbers or not."""
    case = Case((9, 3, 64), 16, decode=[5, 300], tiles=[(0, 9), (250, 40)], tile=40)
    implementation = {
        "reference": attention.attend_reference,
        "xla": attention.attend,
        "native": NATIVE.attend,
    }[attend]
    expected, _ = case.attend(implementation)
    data = np.array(case.pool.data).reshape(3, case.spec.num_kv_slots, -1)
    table, ends = np.asarray(case.rows.page_table), case.rows.query_start + case.rows.query_len
    for row, end in enumerate(np.asarray(ends).tolist()):
        for position in range(end, table.shape[1] * 16):
            data[:, table[row, position // 16] * 16 + position % 16] = np.nan
    case.pool = KVPool(jnp.asarray(data.reshape(case.pool.data.shape)), case.spec)
    out, _ = case.attend(implementation)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("decode", "tiles"), [([5], []), ([], [(0, 9)]), ([], [(511, 1)]), ([0, 0], [(0, 0)])]
)
def test_attention_of_one_kind_of_rows(decode, tiles):
    case = Case((9, 3, 64), 16, decode=decode, tiles=tiles, tile=16)
    expected, _ = case.attend(attention.attend_reference)
    out, _ = case.attend(NATIVE.attend)
    np.testing.assert_allclose(out, expected, atol=1e-4)
    assert np.isfinite(out).all()


@pytest.mark.parametrize("window", [0, 300])
def test_a_row_of_attention_does_not_depend_on_its_batch(window):
    alone = Case((9, 3, 64), 16, decode=[600], tiles=[], tile=32, window=window)
    rows, batch = alone.rows, 5

    def repeated(x):
        return jnp.concatenate([x] * batch)

    crowd = AttentionMetadata(
        repeated(rows.page_table),
        repeated(rows.query_start),
        repeated(rows.query_len),
        repeated(rows.write_kv_slots),
        num_decode=batch,
        tile=32,
    )
    qkv = [repeated(x) for x in alone.qkv]
    one, _ = alone.attend(NATIVE.attend)
    many, _ = jax.jit(partial(NATIVE.attend, kind=alone.kind))(alone.layer, *qkv, crowd, alone.pool)
    for row in np.asarray(many):
        np.testing.assert_array_equal(row, one[0])


@pytest.mark.parametrize("window", [0, 1, 33, 140])
def test_however_a_prompt_is_cut_into_tiles_its_attention_is_the_same(window):
    whole = Case((9, 3, 64), 16, decode=[], tiles=[(0, 390)], tile=390, window=window)
    expected, _ = whole.attend(NATIVE.attend)
    written = KVPool(jnp.asarray(whole.attend(NATIVE.attend)[1]), whole.spec)
    q = whole.qkv[0]
    for start, end in ((0, 1), (1, 33), (33, 90), (90, 301), (301, 390)):
        rows = AttentionMetadata(
            whole.rows.page_table,
            jnp.asarray([start], jnp.int32),
            jnp.asarray([end - start], jnp.int32),
            jnp.full(end - start, whole.spec.num_kv_slots, jnp.int32),
            num_decode=0,
            tile=end - start,
        )
        qkv = [x[start:end] for x in (q, *whole.qkv[1:])]
        attend = jax.jit(partial(NATIVE.attend, kind=whole.kind))
        out, _ = attend(whole.layer, *qkv, rows, written)
        np.testing.assert_array_equal(out, expected[start:end])


@pytest.mark.parametrize(
    "name", ["linear-rope-biased", "mistral-window", "gemma3", "qwen3-moe", "phi3-longrope"]
)
def test_models_equal_xlas(name):
    hf = dict(tiny.CONFIGS[name]) | {"head_dim": 16}
    config = read_config(hf)
    tokens = tiny.prompt_tokens(40)
    logits = []
    for ops in (XLA, NATIVE):
        model = Model.build(config, ops=ops)
        sequence = tiny.Sequence(model, random_params(model, seed=3), 60)
        logits.append(np.concatenate([sequence.feed(tokens, 48), sequence.feed([5])]))
    np.testing.assert_allclose(*logits, atol=1e-4)


def test_they_are_chosen_where_they_can_compute_the_model(tmp_path):
    config = read_config(tiny.CONFIGS["tied-gqa"] | {"head_dim": 64})
    assert default_ops(config, "float32", tmp_path) is NATIVE
    assert default_ops(config, "bfloat16", tmp_path) == XLA_ON_CPU
    odd = read_config(tiny.CONFIGS["tied-gqa"] | {"head_dim": 20})
    assert default_ops(odd, "float32", tmp_path) == XLA_ON_CPU


def test_without_a_compiler_xla_computes_and_the_log_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(build, "_is_registered", False)
    monkeypatch.setattr(build, "COMPILERS", ("no-such-compiler",))
    config = read_config(tiny.CONFIGS["tied-gqa"] | {"head_dim": 64})
    assert default_ops(config, "float32", tmp_path) == XLA_ON_CPU
    assert "no C++ compiler" in caplog.text


def test_what_does_not_build_is_said_and_leaves_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(build, "_is_registered", False)
    monkeypatch.setattr(build, "FLAGS", ("--no-such-flag",))
    assert not build.register(tmp_path)
    assert "no-such-flag" in caplog.text
    assert not list(tmp_path.rglob("*.so"))
