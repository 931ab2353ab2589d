"""Attention on TPUs: JAX's ragged paged attention over the shared pool.

The kernel takes sequences whose queries follow each other without a gap, the last of which stands
at the end of its context. Our rows have gaps: what a row leaves free of its width. Each gap becomes
a sequence of its own that looks at one token of the null page, and is zeroed afterwards.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention
from jax.experimental.pallas.ops.tpu.ragged_paged_attention.kernel import get_min_heads_per_blk

from kvflow_jax.cache.pool import NULL_PAGE, KVPool
from kvflow_jax.models.attention import AttentionMetadata
from kvflow_jax.models.config import AttentionKind
from kvflow_jax.models.kernels.base import Case, Declined, Kernel

LANES = 128
MIN_PAGE_SIZE = 16
DTYPES = ("bfloat16", "float32")
# The kernel's own tables, measured on v5 and v6, have 32 queries nearly everywhere and 4 to 16
# pages. It fetches each page by a copy of its own, and spills scalars with more pages than that.
QUERIES_PER_BLOCK, MAX_PAGES_PER_BLOCK, KV_BLOCK_LEN = 32, 16, 1024
VMEM_BYTES = 64 << 20  # of 128 MiB
# Page tables lie in scalar memory, 1 MiB on v5e: where all do not fit, rows go a few at a time.
TABLE_BYTES = 512 << 10


def check(case: Case) -> None:
    """Raises Declined."""
    config = case.config
    if case.platform != "tpu":
        raise Declined(f"it runs on tpu, this is {case.platform}")
    if config.head_dim % LANES:
        raise Declined(f"head_dim {config.head_dim} is not a multiple of {LANES}")
    if case.page_size < MIN_PAGE_SIZE:
        raise Declined(
            f"it fetches pages one by one: {case.page_size} tokens are too few, at least "
            f"{MIN_PAGE_SIZE} are needed"
        )
    if case.dtype not in DTYPES:
        raise Declined(f"it computes {' and '.join(DTYPES)}, not {case.dtype}")
    dtype = jnp.dtype(case.dtype)
    try:
        get_min_heads_per_blk(config.num_heads, 2 * config.num_kv_heads, dtype, dtype)
    except ValueError as error:
        raise Declined(str(error)) from error


def attend(
    layer: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    rows: AttentionMetadata,
    pool: KVPool,
    kind: AttentionKind,
) -> tuple[jax.Array, KVPool]:
    """See ``attention.attend``."""
    pool = pool.write(layer, rows.write_kv_slots, k, v)
    # A window is a constant of the kernel: one program for each that the model has.
    windows = sorted(set(kind.windows))
    of_layer = jnp.asarray([windows.index(window) for window in kind.windows], jnp.int32)
    branches = [partial(_attend_rows, window or None, kind.scale) for window in windows]
    return jax.lax.switch(of_layer[layer], branches, layer, q, rows, pool), pool


def _attend_rows(
    window: int | None,
    scale: float,
    layer: jax.Array,
    q: jax.Array,
    rows: AttentionMetadata,
    pool: KVPool,
) -> jax.Array:
    """Decode rows and tiles, as many at a time as their page tables fit."""
    num_rows, pages_per_seq = rows.page_table.shape
    n, page_size = rows.num_decode, pool.spec.page_size
    pages = max(1, min(MAX_PAGES_PER_BLOCK, KV_BLOCK_LEN // page_size, pages_per_seq))
    outs, token = [], 0
    for first, end, width in ((0, n, 1), (n, num_rows, rows.tile)):
        at_once = max(1, TABLE_BYTES // (2 * pages_per_seq * 4))
        for start in range(first, end, at_once):
            part = slice(start, min(start + at_once, end))
            num_tokens = (part.stop - part.start) * width
            page_table, context_len, starts, num = _sequences(rows, part, width)
            out = ragged_paged_attention(
                q[token : token + num_tokens],
                pool.data,
                context_len,
                page_table + layer * pool.spec.num_pages,
                starts,
                num,
                sm_scale=scale,
                sliding_window=window,
                num_kv_pages_per_block=pages,
                num_queries_per_block=min(QUERIES_PER_BLOCK, num_tokens),
                vmem_limit_bytes=VMEM_BYTES,
            )
            is_query = jnp.arange(width) < rows.query_len[part, None]  # [R, width]
            outs.append(jnp.where(is_query.reshape(-1)[:, None, None], out, 0))
            token += num_tokens
    return jnp.concatenate(outs)


def _sequences(
    rows: AttentionMetadata, part: slice, width: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Some rows, and the gap after each, as the kernel's S = 2R sequences.

    Returns:
        Page tables i32[S, pages_per_seq], lengths of contexts i32[S], first queries i32[S + 1], and
        how many sequences there are, i32[1]: those of no query are left out, because the kernel
        waits for nothing it has fetched for them.
    """
    page_table, query_len = rows.page_table[part], rows.query_len[part]
    num_queries = jnp.stack([query_len, width - query_len], axis=1).reshape(-1)
    context_len = rows.query_start[part] + query_len
    context_len = jnp.stack([context_len, jnp.ones_like(context_len)], axis=1).reshape(-1)
    nothing = jnp.full_like(page_table, NULL_PAGE)
    tables = jnp.stack([page_table, nothing], axis=1).reshape(-1, page_table.shape[1])
    order = jnp.argsort(num_queries == 0, stable=True)
    starts = jnp.pad(jnp.cumsum(num_queries[order], dtype=jnp.int32), (1, 0))
    num = (num_queries > 0).sum(dtype=jnp.int32)[None]
    return tables[order], context_len[order], starts, num


KERNEL = Kernel(attend, check)
