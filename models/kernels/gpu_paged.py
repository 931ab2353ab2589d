"""Decode attention on GPUs: reads the pages where they lie, by Pallas on Triton.

FlashAttention-2's online softmax (arXiv 2307.08691, algorithm 1). Tiles of prompts are attended
block-wise by XLA. JAX 0.11 and later say that they will drop Triton: ``gpu_mosaic`` is what comes
after, on the chips that it serves. Never the default before a device run has shown that it is right
and faster: ``experiments.device_check``.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kvflow_jax.cache.pool import KVPool
from kvflow_jax.models.attention import MASKED, TINY, AttentionMetadata, attend_to_pool, window_of
from kvflow_jax.models.config import AttentionKind
from kvflow_jax.models.kernels.base import Case, Declined, Kernel
from kvflow_jax.models.kernels.gpu_splits import join, num_splits

BLOCK_LEN = 64  # positions of one turn
MIN_HEADS = 16  # rows of the smallest matrix product


def check(case: Case) -> None:
    """Raises Declined."""
    head_dim = case.config.head_dim
    if case.platform != "gpu":
        raise Declined(f"it runs on gpu, this is {case.platform}")
    if head_dim & (head_dim - 1) or not 16 <= head_dim <= 256:
        raise Declined(f"head_dim {head_dim} is no power of two between 16 and 256")
    try:
        _triton()
    except ImportError as error:
        raise Declined(f"this JAX has no Pallas on Triton: {error}") from error


def attend(
    layer: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    rows: AttentionMetadata,
    pool: KVPool,
    kind: AttentionKind,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, KVPool]:
    """See ``attention.attend``; ``interpret`` computes the kernel on any device, for tests."""
    pool = pool.write(layer, rows.write_kv_slots, k, v)
    n, outs = rows.num_decode, []
    if n:
        end = jnp.where(rows.query_len[:n] > 0, rows.query_start[:n] + 1, 0)
        window = window_of(kind, layer)
        first = jnp.where(window > 0, jnp.maximum(end - window, 0), 0)
        table = rows.page_table[:n] + layer * pool.spec.num_pages
        decode = partial(_decode, scale=kind.scale, interpret=interpret)
        outs.append(decode(q[:n], pool.data, table, first, end))
    if q.shape[0] > n:
        tiles = AttentionMetadata(
            rows.page_table[n:],
            rows.query_start[n:],
            rows.query_len[n:],
            rows.write_kv_slots[n:],
            num_decode=0,
            tile=rows.tile,
        )
        outs.append(attend_to_pool(layer, q[n:], tiles, pool, kind))
    return jnp.concatenate(outs), pool


def _decode(
    q: jax.Array,  # [R, N, H]
    pages: jax.Array,  # [any, page_size, 2 * K, H]
    page_table: jax.Array,  # i32[R, pages_per_seq]
    first: jax.Array,  # i32[R], first position that a row sees
    end: jax.Array,  # i32[R], past the last; 0 is padding
    *,
    scale: float,
    interpret: bool,
) -> jax.Array:
    num_rows, num_heads, head_dim = q.shape
    page_size, kv_heads = pages.shape[1], pages.shape[2] // 2
    per_kv = num_heads // kv_heads
    group = max(MIN_HEADS, pl.next_power_of_2(per_kv))
    splits = num_splits(num_rows * kv_heads)
    grouped = q.reshape(num_rows, kv_heads, per_kv, head_dim)
    grouped = jnp.pad(grouped, ((0, 0), (0, 0), (0, group - per_kv), (0, 0)))
    # One row for each token of the pool, so that a program picks its keys by one index.
    tokens = pages.reshape(-1, *pages.shape[2:])
    triton = _triton()
    outs, logs = pl.pallas_call(
        partial(_attend_split, page_size=page_size, scale=scale),
        grid=(num_rows, kv_heads, splits),
        in_specs=[
            pl.BlockSpec((None, None, group, head_dim), lambda r, h, s: (r, h, 0, 0)),
            pl.BlockSpec(tokens.shape, lambda r, h, s: (0, 0, 0)),
            pl.BlockSpec((None, page_table.shape[1]), lambda r, h, s: (r, 0)),
            pl.BlockSpec((None,), lambda r, h, s: (r,)),
            pl.BlockSpec((None,), lambda r, h, s: (r,)),
        ],
        out_specs=[
            pl.BlockSpec((None, None, None, group, head_dim), lambda r, h, s: (r, h, s, 0, 0)),
            pl.BlockSpec((None, None, None, group), lambda r, h, s: (r, h, s, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((num_rows, kv_heads, splits, group, head_dim), jnp.float32),
            jax.ShapeDtypeStruct((num_rows, kv_heads, splits, group), jnp.float32),
        ],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=interpret,
        name="gpu_paged_decode",
    )(grouped, tokens, page_table, first, end)
    out = join(outs, logs)  # [R, K, G, H]
    return out[:, :, :per_kv].reshape(q.shape).astype(q.dtype)


def _attend_split(
    q_ref: Any,  # [G, H]
    tokens_ref: Any,  # [num_tokens, 2 * K, H], the whole pool
    table_ref: Any,  # i32[pages_per_seq]
    first_ref: Any,  # i32[]
    end_ref: Any,  # i32[]
    out_ref: Any,  # f32[G, H]
    log_ref: Any,  # f32[G], of the sum of exponentials
    *,
    page_size: int,
    scale: float,
) -> None:
    """One row, one KV head, one of the splits of what the row sees."""
    head, split, num_splits = pl.program_id(1), pl.program_id(2), pl.num_programs(2)
    first, end = first_ref[...], end_ref[...]
    num_blocks = pl.cdiv(end - first, BLOCK_LEN)
    per_split = pl.cdiv(num_blocks, num_splits)
    q = q_ref[...]

    def add_block(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        out, peak, total = carry
        position = first + i * BLOCK_LEN + jnp.arange(BLOCK_LEN)
        is_seen = position < end
        position = jnp.minimum(position, end - 1)  # past the end the last one stands in
        token = table_ref[position // page_size] * page_size + position % page_size
        k, v = tokens_ref[token, 2 * head, :], tokens_ref[token, 2 * head + 1, :]  # [S, H] each
        scores = jnp.dot(q, k.T, preferred_element_type=jnp.float32) * scale  # [G, S]
        scores = jnp.where(is_seen[None, :], scores, MASKED)
        new_peak = jnp.maximum(peak, scores.max(1))
        weights = jnp.exp(scores - new_peak[:, None])
        shrink = jnp.exp(peak - new_peak)
        added = jnp.dot(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return out * shrink[:, None] + added, new_peak, total * shrink + weights.sum(1)

    zeros = jnp.zeros(q.shape[0], jnp.float32)
    carry = (jnp.zeros(q.shape, jnp.float32), zeros + MASKED, zeros)
    start = split * per_split
    stop = jnp.minimum(start + per_split, num_blocks)
    out, peak, total = jax.lax.fori_loop(start, stop, add_block, carry)
    total = jnp.maximum(total, TINY)
    out_ref[...], log_ref[...] = out / total[:, None], peak + jnp.log(total)


def _triton() -> ModuleType:
    """Pallas on Triton, which JAX keeps for now: found where it is used, not where it is named."""
    from jax.experimental.pallas import triton

    return triton


KERNEL = Kernel(attend, check)
