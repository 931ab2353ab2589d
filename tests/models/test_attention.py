"""Block-wise attention equals the reference, and the reference equals a dense softmax."""

import jax.numpy as jnp
import numpy as np
import pytest

from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.models.attention import (
    AttentionMetadata,
    attend,
    attend_batched,
    attend_reference,
    map_uniform_rows,
)
from kvflow_jax.models.config import AttentionConfig
from tests.models.kernels.batches import jitted
from tests.support.tiers import slow_except

HEAD_DIM = 16
TILE = 8


def attend_on_accelerator(layer, q, k, v, metadata, pool, config):
    """Compute ``attend`` as on an accelerator."""
    pool = pool.write(layer, metadata.write_kv_slots, k, v)
    return map_uniform_rows(attend_batched, layer, q, metadata, pool, config), pool


@pytest.fixture(params=[attend, attend_on_accelerator], ids=["cpu", "accelerator"])
def blocks(request):
    return request.param


class Batch:
    """Rows over a pool with random K and V in the cached prefixes, on shuffled pages.

    ``decode`` and ``tiles`` are (cached length, query length); query length 0 is a padding row.
    """

    def __init__(self, *, heads, kv_heads, page_size, decode, tiles, dtype="float32", window=0):
        rng = np.random.default_rng(0)
        # The batch runs in the second layer: the windows of the others must not matter.
        self.config = AttentionConfig(HEAD_DIM**-0.5, (1, window, 2) if window else (0, 0, 0))
        rows = decode + tiles
        pages_per_seq = max(-(-(cached + new) // page_size) for cached, new in rows) + 2
        num_pages = len(rows) * pages_per_seq + 1
        self.spec = PoolSpec(3, num_pages, page_size, kv_heads, HEAD_DIM, dtype)
        free = rng.permutation(np.arange(1, num_pages))
        table = np.zeros((len(rows), pages_per_seq), np.int32)
        kv_slots, self.history = [], []
        num_tokens = len(decode) + len(tiles) * TILE
        self.q = rng.normal(size=(num_tokens, heads, HEAD_DIM)).astype(np.float32)
        self.k = rng.normal(size=(num_tokens, kv_heads, HEAD_DIM)).astype(np.float32)
        self.v = rng.normal(size=(num_tokens, kv_heads, HEAD_DIM)).astype(np.float32)
        # Pages outside a row's context must not matter: fill them with garbage. In numpy, because
        # JAX compiles each write of another length.
        shape = (3, self.spec.num_kv_slots, kv_heads, 2, HEAD_DIM)
        data = rng.normal(size=shape).astype(np.float32) * 100
        for r, (cached, new) in enumerate(rows):
            used = -(-(cached + new) // page_size)
            table[r, :used], free = free[:used], free[used:]
            k, v = rng.normal(size=(2, cached, kv_heads, HEAD_DIM)).astype(np.float32)
            self.history.append((k, v))
            seq_kv_slots = (table[r, :used, None] * page_size + np.arange(page_size)).reshape(-1)
            data[1, seq_kv_slots[:cached]] = np.stack([k, v], axis=2)
            width = 1 if r < len(decode) else TILE
            padding = [self.spec.num_kv_slots] * (width - new)
            kv_slots += [*seq_kv_slots[cached : cached + new], *padding]
        data = data.reshape(3 * num_pages, page_size, 2 * kv_heads, HEAD_DIM)
        self.pool = KVPool(jnp.asarray(data.astype(jnp.dtype(dtype))), self.spec)
        self.metadata = AttentionMetadata(
            table,
            np.array([cached for cached, _ in rows], np.int32),
            np.array([new for _, new in rows], np.int32),
            np.array(kv_slots, np.int32),
            num_decode=len(decode),
            tile=TILE,
        )
        self.shape = rows

    def run(self, implementation, dtype="float32"):
        qkv = (x.astype(jnp.dtype(dtype)) for x in (self.q, self.k, self.v))
        out, pool = jitted(implementation, self.config)(np.int32(1), *qkv, self.metadata, self.pool)
        return np.asarray(out).astype(np.float32), pool

    def dense(self):
        """Return dense attention of each sequence, in numpy float64."""
        out = np.zeros(self.q.shape)
        token = 0
        for r, (cached, new) in enumerate(self.shape):
            width = 1 if r < self.metadata.num_decode else TILE
            here = slice(token, token + new)
            k, v = (np.concatenate([self.history[r][i], x[here]])
                    for i, x in enumerate((self.k, self.v)))  # fmt: skip
            groups = self.q.shape[1] // self.k.shape[1]
            k, v = (np.repeat(x.astype(np.float64), groups, axis=1) for x in (k, v))
            for j in range(new):
                end, window = cached + j + 1, self.config.windows[1]
                visible = slice(max(0, end - window) if window else 0, end)
                scores = np.einsum("nh,snh->ns", self.q[token + j], k[visible]) * self.config.scale
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                weights /= weights.sum(-1, keepdims=True)
                out[token + j] = np.einsum("ns,snh->nh", weights, v[visible])
            token += width
        return out


RAGGED = {
    "decode only": ([(0, 1), (37, 1), (150, 1), (15, 1)], []),
    "tiles only": ([], [(0, 8), (8, 8), (16, 3)]),
    "mixed": ([(5, 1), (290, 1)], [(0, 8), (64, 8), (131, 1)]),
    "padded": ([(0, 0), (40, 1), (0, 0)], [(33, 5), (0, 0)]),
    "all padding": ([(0, 0)], [(0, 0)]),
    "prompt boundary": ([(16, 1), (15, 1), (255, 1), (256, 1)], [(16, 8), (248, 8), (256, 8)]),
}


@pytest.mark.parametrize(
    ("heads", "page_size", "ragged"),
    slow_except(
        [
            *(((6, 2), 16, ragged) for ragged in RAGGED),
            ((4, 4), 16, "mixed"),
            ((8, 1), 32, "mixed"),
            ((4, 4), 1, "padded"),
        ],
        ((6, 2), 16, "mixed"),
        ((4, 4), 1, "padded"),
    ),
    ids=str,
)
def test_blocks_equal_reference_and_dense(blocks, heads, page_size, ragged):
    decode, tiles = RAGGED[ragged]
    batch = Batch(
        heads=heads[0], kv_heads=heads[1], page_size=page_size, decode=decode, tiles=tiles
    )
    reference, pool = batch.run(attend_reference)
    np.testing.assert_allclose(reference, batch.dense(), atol=2e-5)
    out, same_pool = batch.run(blocks)
    np.testing.assert_allclose(out, reference, atol=2e-5)
    np.testing.assert_array_equal(pool.data, same_pool.data)


@pytest.mark.parametrize(
    ("window", "ragged"),
    slow_except(
        [
            *((window, "mixed") for window in (1, 16, 257, 1000)),
            *((100, ragged) for ragged in RAGGED),
        ],
        (16, "mixed"),
        (100, "prompt boundary"),
    ),
)
def test_a_window_masks_earlier_positions(blocks, window, ragged):
    decode, tiles = RAGGED[ragged]
    batch = Batch(heads=6, kv_heads=2, page_size=16, decode=decode, tiles=tiles, window=window)
    reference, _ = batch.run(attend_reference)
    np.testing.assert_allclose(reference, batch.dense(), atol=2e-5)
    out, _ = batch.run(blocks)
    np.testing.assert_allclose(out, reference, atol=2e-5)


def test_pages_before_every_window_are_not_read(blocks):
    """They may hold NaN: the loop starts after them."""
    decode, tiles = [(1300, 1), (0, 0)], [(1200, 8), (1208, 8)]
    batch = Batch(heads=4, kv_heads=2, page_size=16, decode=decode, tiles=tiles, window=100)
    expected, _ = batch.run(blocks)
    pages = np.asarray(batch.metadata.page_table)[:, : 1024 // 16].reshape(-1)
    data = np.array(batch.pool.data)
    data[batch.spec.num_pages + pages] = np.nan
    batch.pool = KVPool(jnp.asarray(data), batch.spec)
    out, _ = batch.run(blocks)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("dtype", "pool_dtype"),
    [("bfloat16", "bfloat16"), ("float16", "float16"), ("float32", "bfloat16")],
)
def test_low_precision_stays_within_its_tolerance(blocks, dtype, pool_dtype):
    batch = Batch(
        heads=6,
        kv_heads=2,
        page_size=16,
        decode=[(100, 1), (0, 0)],
        tiles=[(40, 8), (0, 3)],
        dtype=pool_dtype,
    )
    reference, _ = batch.run(attend_reference, dtype)
    out, _ = batch.run(blocks, dtype)
    tolerance = 3e-2 if "bfloat16" in (dtype, pool_dtype) else 4e-3
    np.testing.assert_allclose(reference, batch.dense(), atol=tolerance)
    np.testing.assert_allclose(out, reference, atol=tolerance)


def test_padding_is_zero_and_writes_nothing():
    batch = Batch(heads=4, kv_heads=2, page_size=16, decode=[(0, 0)], tiles=[(0, 0), (3, 2)])
    for implementation in (attend, attend_on_accelerator, attend_reference):
        out, pool = batch.run(implementation)
        padding = np.r_[0, 1:9, 11:17]
        assert (out[padding] == 0).all()
        assert (out[9:11] != 0).all()
        changed = np.flatnonzero((np.asarray(pool.data) != np.asarray(batch.pool.data)).any((2, 3)))
        assert len(changed) == 2


def test_decode_only_batch_has_no_tiles():
    """A step with only decode rows has num_tokens == num_decode."""
    batch = Batch(heads=4, kv_heads=2, page_size=16, decode=[(3, 1)], tiles=[])
    out, _ = batch.run(attend)
    assert out.shape == (1, 4, HEAD_DIM)
