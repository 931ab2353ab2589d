"""Ragged batches over a shuffled pool, and their attention by one kernel or another."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.models.attention import AttentionMetadata
from kvflow_jax.models.config import AttentionConfig

MIXED = {"decode": [1, 300, 0, 17, 256, 257], "tiles": [(0, 40), (100, 33), (0, 0), (250, 40)]}
RAGGED = {
    "mixed": MIXED,
    "decode only": {"decode": [64, 1, 65], "tiles": []},
    "tiles only": {"decode": [], "tiles": [(0, 7), (130, 40)]},
    "padding first": {"decode": [0, 0, 40], "tiles": [(0, 0), (30, 1)]},
    "all padding": {"decode": [0], "tiles": [(0, 0)]},
}
SHORT = {"decode": [1, 150, 0, 17, 128], "tiles": [(0, 40), (100, 33), (0, 0)]}


@cache
def jitted(attend, config):
    """Return one jitted function for equal arguments: equal shapes compile once."""
    return jax.jit(partial(attend, config=config))


@cache
def without_rope(ops):
    """Return the attention of ops, as a function like ``attention.attend``: no head is rotated."""

    def attend(layer, q, k, v, metadata, pool, config):
        qkv = jnp.concatenate([q, k, v], axis=1)
        shape = (len(qkv), 1, qkv.shape[2] // 2)
        angles = jnp.ones(shape), jnp.zeros(shape)
        return ops.rotate_and_attend(layer, qkv, angles, metadata, pool, config)

    return attend


class RaggedBatch:
    """Sequences of the given lengths in a shuffled pool, and the rows that attend to them.

    Args:
        heads: (num_heads, num_kv_heads, head_dim).
        decode: context length of each decode row; 0 is padding.
        tiles: (start, number of queries) of each tile.
    """

    def __init__(self, heads, page_size, *, decode, tiles, tile, window=0, dtype="float32"):
        rng = np.random.default_rng(0)
        num_heads, kv_heads, head_dim = heads
        # The batch runs in the second layer: the windows of the others must not matter.
        self.config = AttentionConfig(head_dim**-0.5, (1, window, 2) if window else (0, 0, 0))
        lens = [*decode, *(start + length for start, length in tiles)]
        pages_per_seq = max(1, -(-max(lens) // page_size)) + 1
        num_pages = 1 + len(lens) * pages_per_seq
        self.spec = PoolSpec(
            3, num_pages, page_size, kv_heads, head_dim, dtype, as_bits=dtype != "float32"
        )
        data = rng.standard_normal(KVPool.zeros(self.spec).data.shape, np.float32)
        if self.spec.as_bits:
            data = data.astype(jnp.dtype(dtype)).view(np.uint16)
        self.pool = KVPool(jnp.asarray(data), self.spec)
        self.layer = jnp.int32(1)
        table = 1 + rng.permutation(num_pages - 1).reshape(len(lens), -1).astype(np.int32)
        starts = [max(0, n - 1) for n in decode] + [start for start, _ in tiles]
        query_lens = [min(1, n) for n in decode] + [length for _, length in tiles]
        num_tokens = len(decode) + len(tiles) * tile
        kv_slots = np.full(num_tokens, self.spec.num_kv_slots, np.int32)
        token = 0
        for row in range(len(lens)):
            width = 1 if row < len(decode) else tile
            for i in range(query_lens[row]):
                position = starts[row] + i
                page = table[row, position // page_size]
                kv_slots[token + i] = page * page_size + position % page_size
            token += width
        self.metadata = AttentionMetadata(
            page_table=jnp.asarray(table),
            query_start=jnp.asarray(starts, jnp.int32),
            query_len=jnp.asarray(query_lens, jnp.int32),
            write_kv_slots=jnp.asarray(kv_slots),
            num_decode=len(decode),
            tile=tile,
        )
        shape = (num_tokens, num_heads + 2 * kv_heads, head_dim)
        qkv = 2 * rng.standard_normal(shape, np.float32)
        self.qkv = np.split(qkv, [num_heads, num_heads + kv_heads], axis=1)

    def attend(self, attend):
        """Return the output and the pool's data."""
        attend = jitted(attend, self.config)
        out, pool = attend(self.layer, *self.qkv, self.metadata, self.pool)
        return np.asarray(out), np.asarray(pool.data)


def attend_with_window(batch, attend, window=0):
    """Attend with another scale and a window in the middle one of three layers only."""
    config = AttentionConfig(0.8 * batch.spec.head_dim**-0.5, (0, window, 0))
    attend = jitted(attend, config)
    out, pool = attend(batch.layer, *batch.qkv, batch.metadata, batch.pool)
    return np.asarray(out, np.float32), np.asarray(pool.data, np.float32)


def in_dtype(batch, dtype):
    """Convert queries, keys, values and pool."""
    batch.qkv = [jnp.asarray(x, dtype) for x in batch.qkv]
    batch.spec = replace(batch.spec, dtype=dtype)
    batch.pool = KVPool(jnp.asarray(batch.pool.data, dtype), batch.spec)
    return batch


def with_nan_past_contexts(batch):
    """Write NaN past the end of every context, where pages hold stale values."""
    page_size = batch.spec.page_size
    data = np.array(batch.pool.data).reshape(3, batch.spec.num_kv_slots, -1)
    nan = 0x7FC0 if batch.spec.as_bits else np.nan
    ends = np.asarray(batch.metadata.query_start + batch.metadata.query_len)
    for pages, end in zip(np.asarray(batch.metadata.page_table), ends.tolist(), strict=True):
        for position in range(end, len(pages) * page_size):
            data[:, pages[position // page_size] * page_size + position % page_size] = nan
    batch.pool = KVPool(jnp.asarray(data.reshape(batch.pool.data.shape)), batch.spec)
    return batch
