"""Attention on TPUs: JAX's ragged paged attention over the shared pool.

The kernel takes sequences whose queries are adjacent, each sequence's last query at the end of its
context. Our rows have gaps: the padding of a row to its width. Each gap becomes a sequence of its
own that attends to one token of the null page; its output is zeroed afterwards.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.ragged_paged_attention import ragged_paged_attention
from jax.experimental.pallas.ops.tpu.ragged_paged_attention.kernel import get_min_heads_per_blk

from kvflow_jax.cache.pool import NULL_PAGE, KVPool
from kvflow_jax.models.attention import AttentionMetadata
from kvflow_jax.models.config import AttentionConfig
from kvflow_jax.models.kernels.base import Declined, Kernel, KernelTarget

LANES = 128
MIN_PAGE_SIZE = 16
DTYPES = ("bfloat16", "float32")
# The kernel's tuning tables, measured on v5 and v6, have 32 queries nearly everywhere and 4 to 16
# pages. It fetches each page with a copy of its own, and spills scalars with more pages than that.
QUERIES_PER_BLOCK, MAX_PAGES_PER_BLOCK, KV_BLOCK_LEN = 32, 16, 1024
VMEM_BYTES = 64 << 20  # of 128 MiB
# Page tables are in scalar memory, 1 MiB on v5e: if not all fit, each call takes only some rows.
TABLE_BYTES = 512 << 10


def check(target: KernelTarget) -> None:
    """Raise ``Declined`` if the kernel does not support the target."""
    config = target.config
    if target.platform != "tpu":
        raise Declined(f"it runs on tpu, not on {target.platform}")
    if config.head_dim % LANES:
        raise Declined(f"head_dim {config.head_dim} is not a multiple of {LANES}")
    if target.page_size < MIN_PAGE_SIZE:
        raise Declined(
            f"page_size {target.page_size} is below {MIN_PAGE_SIZE}: it fetches pages one by one"
        )
    if target.dtype not in DTYPES:
        raise Declined(f"it supports {' and '.join(DTYPES)}, not {target.dtype}")
    dtype = jnp.dtype(target.dtype)
    try:
        get_min_heads_per_blk(config.num_heads, 2 * config.num_kv_heads, dtype, dtype)
    except ValueError as error:
        raise Declined(str(error)) from error


def attend(
    layer: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    metadata: AttentionMetadata,
    pool: KVPool,
    config: AttentionConfig,
) -> tuple[jax.Array, KVPool]:
    """Compute ``attention.attend``."""
    pool = pool.write(layer, metadata.write_kv_slots, k, v)
    # A window is a constant of the kernel: one branch per distinct window of the model.
    windows = sorted(set(config.windows))
    branch_of_layer = jnp.asarray([windows.index(window) for window in config.windows], jnp.int32)
    branches = [partial(_attend_rows, window or None, config.scale) for window in windows]
    return jax.lax.switch(branch_of_layer[layer], branches, layer, q, metadata, pool), pool


def _attend_rows(
    window: int | None,
    scale: float,
    layer: jax.Array,
    q: jax.Array,
    metadata: AttentionMetadata,
    pool: KVPool,
) -> jax.Array:
    """Attend decode rows and tiles, as many per call as have room for their page tables."""
    num_rows, pages_per_seq = metadata.page_table.shape
    n, page_size = metadata.num_decode, pool.spec.page_size
    pages = max(1, min(MAX_PAGES_PER_BLOCK, KV_BLOCK_LEN // page_size, pages_per_seq))
    outs, token = [], 0
    for first, end, width in ((0, n, 1), (n, num_rows, metadata.tile)):
        rows_per_call = max(1, TABLE_BYTES // (2 * pages_per_seq * 4))
        for start in range(first, end, rows_per_call):
            part = slice(start, min(start + rows_per_call, end))
            num_tokens = (part.stop - part.start) * width
            page_table, context_len, starts, num = _sequences(metadata, part, width)
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
            is_query = jnp.arange(width) < metadata.query_len[part, None]  # [R, width]
            outs.append(jnp.where(is_query.reshape(-1)[:, None, None], out, 0))
            token += num_tokens
    return jnp.concatenate(outs)


def _sequences(
    metadata: AttentionMetadata, part: slice, width: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Return R rows, and the gap after each, as the kernel's S = 2R sequences.

    Returns:
        Page tables i32[S, pages_per_seq], context lengths i32[S], indices of the first queries
        i32[S + 1], and the number of sequences, i32[1]. Sequences without queries are not counted,
        because the kernel would not wait for the pages it fetches for them.
    """
    page_table, query_len = metadata.page_table[part], metadata.query_len[part]
    num_queries = jnp.stack([query_len, width - query_len], axis=1).reshape(-1)
    context_len = metadata.query_start[part] + query_len
    context_len = jnp.stack([context_len, jnp.ones_like(context_len)], axis=1).reshape(-1)
    null_pages = jnp.full_like(page_table, NULL_PAGE)
    tables = jnp.stack([page_table, null_pages], axis=1).reshape(-1, page_table.shape[1])
    order = jnp.argsort(num_queries == 0, stable=True)
    starts = jnp.pad(jnp.cumsum(num_queries[order], dtype=jnp.int32), (1, 0))
    num = (num_queries > 0).sum(dtype=jnp.int32)[None]
    return tables[order], context_len[order], starts, num


KERNEL = Kernel(attend, check)
