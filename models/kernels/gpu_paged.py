"""Decode attention on GPUs in Pallas on Triton; it reads the pages in place.

FlashAttention-2's online softmax (arXiv 2307.08691, algorithm 1). Tiles use XLA's block-wise
attention. JAX 0.11 and later deprecate Triton; ``gpu_mosaic`` is the successor on the chips that it
supports.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from kvflow_jax.cache.pool import KVPool
from kvflow_jax.models.attention import (
    MASKED,
    TINY,
    AttentionMetadata,
    attend_to_pool,
    layer_window,
)
from kvflow_jax.models.config import AttentionConfig
from kvflow_jax.models.kernels.base import Declined, Kernel, KernelTarget
from kvflow_jax.models.kernels.gpu_splits import merge_splits, num_splits

BLOCK_LEN = 64  # positions per iteration
MIN_HEADS = 16  # rows of the smallest matrix product


def check(target: KernelTarget) -> None:
    """Raise ``Declined`` if the kernel does not support the target."""
    head_dim = target.config.head_dim
    if target.platform != "gpu":
        raise Declined(f"it runs on gpu, not on {target.platform}")
    if head_dim & (head_dim - 1) or not 16 <= head_dim <= 256:
        raise Declined(f"head_dim {head_dim} is not a power of two from 16 to 256")
    try:
        _triton()
    except ImportError as error:
        raise Declined(f"this JAX has no Pallas on Triton: {error}") from error


def attend(
    layer: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    metadata: AttentionMetadata,
    pool: KVPool,
    config: AttentionConfig,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, KVPool]:
    """Compute ``attention.attend``; ``interpret`` runs the kernel on any device, for tests."""
    pool = pool.write(layer, metadata.write_kv_slots, k, v)
    n, outs = metadata.num_decode, []
    if n:
        end = jnp.where(metadata.query_len[:n] > 0, metadata.query_start[:n] + 1, 0)
        window = layer_window(config, layer)
        first = jnp.where(window > 0, jnp.maximum(end - window, 0), 0)
        table = metadata.page_table[:n] + layer * pool.spec.num_pages
        decode = partial(_decode, scale=config.scale, interpret=interpret)
        outs.append(decode(q[:n], pool.data, table, first, end))
    if q.shape[0] > n:
        tiles = AttentionMetadata(
            metadata.page_table[n:],
            metadata.query_start[n:],
            metadata.query_len[n:],
            metadata.write_kv_slots[n:],
            num_decode=0,
            tile=metadata.tile,
        )
        outs.append(attend_to_pool(layer, q[n:], tiles, pool, config))
    return jnp.concatenate(outs), pool


def _decode(
    q: jax.Array,  # [R, N, H]
    pages: jax.Array,  # [any, page_size, 2 * K, H]
    page_table: jax.Array,  # i32[R, pages_per_seq]
    first: jax.Array,  # i32[R], first position that a row attends to
    end: jax.Array,  # i32[R], one past its last position; 0 is padding
    *,
    scale: float,
    interpret: bool,
) -> jax.Array:  # like q
    num_rows, num_heads, head_dim = q.shape
    page_size, kv_heads = pages.shape[1], pages.shape[2] // 2
    per_kv = num_heads // kv_heads
    group = max(MIN_HEADS, pl.next_power_of_2(per_kv))
    splits = num_splits(num_rows * kv_heads)
    grouped = q.reshape(num_rows, kv_heads, per_kv, head_dim)
    grouped = jnp.pad(grouped, ((0, 0), (0, 0), (0, group - per_kv), (0, 0)))
    # One row per token of the pool, so that a program gathers its keys by one index.
    tokens = pages.reshape(-1, *pages.shape[2:])
    triton = _triton()
    outs, lse = pl.pallas_call(
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
    out = merge_splits(outs, lse)  # [R, K, G, H]
    return out[:, :, :per_kv].reshape(q.shape).astype(q.dtype)


def _attend_split(
    q_ref: Any,  # [G, H]
    tokens_ref: Any,  # [num_tokens, 2 * K, H], the whole pool
    table_ref: Any,  # i32[pages_per_seq]
    first_ref: Any,  # i32[]
    end_ref: Any,  # i32[]
    out_ref: Any,  # f32[G, H]
    lse_ref: Any,  # f32[G], log-sum-exp
    *,
    page_size: int,
    scale: float,
) -> None:
    """Attend for one row and one KV head to one split of the row's positions."""
    head, split, num_splits = pl.program_id(1), pl.program_id(2), pl.num_programs(2)
    first, end = first_ref[...], end_ref[...]
    num_blocks = pl.cdiv(end - first, BLOCK_LEN)
    per_split = pl.cdiv(num_blocks, num_splits)
    q = q_ref[...]

    def add_block(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        out, peak, total = carry
        position = first + i * BLOCK_LEN + jnp.arange(BLOCK_LEN)
        is_visible = position < end
        position = jnp.minimum(position, end - 1)  # past the end: any valid one, masked below
        token = table_ref[position // page_size] * page_size + position % page_size
        k, v = tokens_ref[token, 2 * head, :], tokens_ref[token, 2 * head + 1, :]  # [S, H] each
        scores = jnp.dot(q, k.T, preferred_element_type=jnp.float32) * scale  # [G, S]
        scores = jnp.where(is_visible[None, :], scores, MASKED)
        new_peak = jnp.maximum(peak, scores.max(1))
        weights = jnp.exp(scores - new_peak[:, None])
        rescale = jnp.exp(peak - new_peak)
        added = jnp.dot(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return out * rescale[:, None] + added, new_peak, total * rescale + weights.sum(1)

    zeros = jnp.zeros(q.shape[0], jnp.float32)
    carry = (jnp.zeros(q.shape, jnp.float32), zeros + MASKED, zeros)
    start = split * per_split
    stop = jnp.minimum(start + per_split, num_blocks)
    out, peak, total = jax.lax.fori_loop(start, stop, add_block, carry)
    total = jnp.maximum(total, TINY)
    out_ref[...], lse_ref[...] = out / total[:, None], peak + jnp.log(total)


def _triton() -> ModuleType:
    """Import Pallas on Triton lazily: later versions of JAX may not have it."""
    from jax.experimental.pallas import triton

    return triton


KERNEL = Kernel(attend, check)
