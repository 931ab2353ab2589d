"""Attention of a ragged batch over the paged KV pool.

A batch is a list of *rows*. Each of the first ``num_decode`` rows has one query token. Each later
row is a *tile*: up to ``tile`` consecutive query tokens of one sequence (a prefill chunk is cut
into tiles). Flat tokens are in row order: ``num_tokens = num_decode + num_tiles * tile``. All
shapes are static; ``query_len`` tells tokens from padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp

from kvflow_jax.cache.pool import NULL_PAGE, KVPool
from kvflow_jax.models.config import AttentionConfig

# KV tokens per iteration of the online softmax. More tokens amortise an iteration; fewer waste less
# work past the end of a context. Measured on CPU.
DECODE_GROUP_LEN, TILE_GROUP_LEN = 256, 512
MASKED = -1e30  # finite, so that a row that attends to nothing has no NaN
TINY = 1e-30
NO_WINDOW = 1 << 30  # longer than any context


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["page_table", "query_start", "query_len", "write_kv_slots"],
    meta_fields=["num_decode", "tile"],
)
@dataclass(frozen=True)
class AttentionMetadata:
    """Which tokens of a batch attend to which pages.

    Query j of row r has position ``query_start[r] + j`` in its sequence. It attends to itself and
    to earlier positions, as far back as the layer's window reaches. Their KV is in the pages
    ``page_table[r]``. Rows with ``query_len`` 0 are padding.
    """

    page_table: jax.Array  # i32[num_rows, pages_per_seq], padded with the null page
    query_start: jax.Array  # i32[num_rows]
    query_len: jax.Array  # i32[num_rows]
    write_kv_slots: jax.Array  # i32[num_tokens], out of range where the token is padding
    num_decode: int
    tile: int


class Attend(Protocol):
    """The signature of ``attend``. Every implementation must equal ``attend_reference``."""

    def __call__(
        self,
        layer: jax.Array,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        metadata: AttentionMetadata,
        pool: KVPool,
        config: AttentionConfig,
    ) -> tuple[jax.Array, KVPool]: ...


def attend(
    layer: jax.Array,  # i32[]
    q: jax.Array,  # [num_tokens, num_heads, head_dim]
    k: jax.Array,  # [num_tokens, num_kv_heads, head_dim]
    v: jax.Array,  # [num_tokens, num_kv_heads, head_dim]
    metadata: AttentionMetadata,
    pool: KVPool,
    config: AttentionConfig,
) -> tuple[jax.Array, KVPool]:
    """Write the K and V of a layer's new tokens to the pool, then attend to the pool.

    Returns:
        The output, [num_tokens, num_heads, head_dim] in the dtype of ``q``, zeros for padding; and
        the pool.
    """
    pool = pool.write(layer, metadata.write_kv_slots, k, v)
    return attend_to_pool(layer, q, metadata, pool, config), pool


def attend_to_pool(
    layer: jax.Array,
    q: jax.Array,
    metadata: AttentionMetadata,
    pool: KVPool,
    config: AttentionConfig,
) -> jax.Array:
    """Do as ``attend``, with K and V already written."""
    return map_uniform_rows(_attend_blocks, layer, q, metadata, pool, config)


def attend_reference(
    layer: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    metadata: AttentionMetadata,
    pool: KVPool,
    config: AttentionConfig,
) -> tuple[jax.Array, KVPool]:
    """Compute what ``attend`` must equal: gather every page of the table, softmax in float32."""
    pool = pool.write(layer, metadata.write_kv_slots, k, v)
    return map_uniform_rows(_attend_all, layer, q, metadata, pool, config), pool


def layer_window(config: AttentionConfig, layer: jax.Array) -> jax.Array:
    """Return the window of a layer in tokens, i32[]; 0 means no window."""
    return jnp.asarray(config.windows, jnp.int32)[layer] if config.has_windows else jnp.int32(0)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["q", "page_table", "query_start", "query_len", "window"],
    meta_fields=["scale"],
)
@dataclass(frozen=True)
class UniformRows:
    """R rows of Q queries each, with query heads in G groups for K KV heads."""

    q: jax.Array  # [R, Q, K, G, H]
    page_table: jax.Array  # i32[R, pages_per_seq]
    query_start: jax.Array  # i32[R]
    query_len: jax.Array  # i32[R]
    window: jax.Array | None  # i32[R]; None if no layer of the model has a window
    scale: float

    def mask(self, positions: jax.Array) -> jax.Array:  # i32[S] -> bool[R, Q, S]
        """Return True where a query attends to a position; False for every padding query."""
        query = jnp.arange(self.q.shape[1])
        query_positions = (self.query_start[:, None] + query)[..., None]
        is_visible = positions <= query_positions
        if self.window is not None:
            is_visible &= positions > query_positions - self.window[:, None, None]
        return is_visible & (query < self.query_len[:, None])[..., None]

    def first_visible(self) -> jax.Array:
        """Return the first position that any query attends to, i32[]."""
        if self.window is None:
            return jnp.zeros((), jnp.int32)
        first = jnp.maximum(self.query_start + 1 - self.window, 0)
        return jnp.where(self.query_len > 0, first, NO_WINDOW).min()

    def zero_past_context(self, v: jax.Array, positions: jax.Array) -> jax.Array:
        """Return V [R, S, K, H] with zeros past the end of each row's context.

        There a page holds stale values, and a weight of 0 times infinity would be NaN.
        """
        is_context = positions < (self.query_start + self.query_len)[:, None]
        return jnp.where(is_context[..., None, None], v, 0.0)


RowAttention = Callable[[jax.Array, UniformRows, KVPool], jax.Array]  # -> shape of UniformRows.q


def map_uniform_rows(
    attend_rows: RowAttention,
    layer: jax.Array,
    q: jax.Array,
    metadata: AttentionMetadata,
    pool: KVPool,
    config: AttentionConfig,
) -> jax.Array:
    """Apply ``attend_rows`` to the decode rows and to the tiles, and concatenate the outputs."""
    window = None
    if config.has_windows:
        window = layer_window(config, layer)
        window = jnp.where(window > 0, window, NO_WINDOW)
    grouped = q.reshape(q.shape[0], pool.spec.num_kv_heads, -1, q.shape[-1])  # [T, K, G, H]
    n = metadata.num_decode
    outs = []
    for part, tokens, width in (
        (slice(n), grouped[:n], 1),
        (slice(n, None), grouped[n:], metadata.tile),
    ):
        if tokens.shape[0]:
            rows = UniformRows(
                tokens.reshape(-1, width, *grouped.shape[1:]),
                metadata.page_table[part],
                metadata.query_start[part],
                metadata.query_len[part],
                None if window is None else jnp.full_like(metadata.query_len[part], window),
                config.scale,
            )
            outs.append(attend_rows(layer, rows, pool).reshape(-1, *q.shape[1:]))
    return jnp.concatenate(outs).astype(q.dtype)


def _attend_all(layer: jax.Array, rows: UniformRows, pool: KVPool) -> jax.Array:
    k, v = (_tokens(kv).astype(jnp.float32) for kv in pool.read(layer, rows.page_table))
    scores = jnp.einsum("rqkgh,rskh->rkgqs", rows.q.astype(jnp.float32), k)
    mask = rows.mask(jnp.arange(k.shape[1]))[:, None, None]  # [R, 1, 1, Q, S]
    scores = jnp.where(mask, scores * rows.scale, MASKED)
    weights = jnp.where(mask, jnp.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    v = rows.zero_past_context(v, jnp.arange(v.shape[1]))
    weights /= jnp.maximum(weights.sum(-1, keepdims=True), TINY)
    return jnp.einsum("rkgqs,rskh->rqkgh", weights, v)


def _attend_blocks(layer: jax.Array, rows: UniformRows, pool: KVPool) -> jax.Array:
    """Run the online softmax over groups of pages (FlashAttention-2, arXiv 2307.08691, alg. 1).

    The loop bounds are dynamic: one compiled shape serves all context lengths. In a layer with a
    window the loop starts at the first group that any query attends to.
    """
    attended: jax.Array = jax.lax.platform_dependent(
        layer, rows, pool, cpu=attend_per_tile, default=attend_batched
    )
    return attended


def attend_per_tile(layer: jax.Array, rows: UniformRows, pool: KVPool) -> jax.Array:
    """Attend in float32, decode rows together and tiles one after the other; the CPU's choice.

    The decode rows loop to the end of the longest context. Each tile loops only to the end of its
    own, so that the early tiles of a chunk do not pay for the late ones.
    """
    if rows.q.shape[1] == 1:
        return _attend_groups(layer, rows, pool, jnp.float32)

    def attend_tile(tile: UniformRows) -> jax.Array:
        single = jax.tree.map(lambda x: x[None], tile)
        return _attend_groups(layer, single, pool, jnp.float32)[0]

    out: jax.Array = jax.lax.map(attend_tile, rows)
    return out


def attend_batched(layer: jax.Array, rows: UniformRows, pool: KVPool) -> jax.Array:
    """Attend in the pool's dtype, all rows together, sums in float32; the accelerators' choice.

    A single tile would leave an accelerator mostly idle.
    """
    return _attend_groups(layer, rows, pool, pool.spec.dtype)


def _attend_groups(
    layer: jax.Array, rows: UniformRows, pool: KVPool, dtype: jax.typing.DTypeLike
) -> jax.Array:
    num_rows, num_queries, kv_heads, per_kv, head_dim = rows.q.shape
    pages_per_seq = rows.page_table.shape[1]
    max_group_len = DECODE_GROUP_LEN if num_queries == 1 else TILE_GROUP_LEN
    group = max(1, min(max_group_len // pool.spec.page_size, pages_per_seq))  # pages
    group_len = group * pool.spec.page_size  # tokens
    page_table = jnp.pad(
        rows.page_table, ((0, 0), (0, -pages_per_seq % group)), constant_values=NULL_PAGE
    )
    context_len = jnp.where(rows.query_len > 0, rows.query_start + rows.query_len, 0)
    first_group = rows.first_visible() // group_len
    end_group = -(-context_len.max() // group_len)
    # The queries of all heads that share a KV head are one matrix: M = per_kv * num_queries.
    q = jnp.moveaxis(rows.q.astype(dtype), 1, 3)  # [R, K, G, Q, H]
    q = q.reshape(num_rows, kv_heads, -1, head_dim)  # [R, K, M, H]

    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def add_group(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        peak, total, acc = carry  # f32[R, K, M], f32[R, K, M], f32[R, K, M, H]
        pages = jax.lax.dynamic_slice_in_dim(page_table, i * group, group, axis=1)
        k, v = (_tokens(kv).astype(dtype) for kv in pool.read(layer, pages))  # [R, S, K, H]
        positions = i * group_len + jnp.arange(group_len)
        v = rows.zero_past_context(v, positions)
        mask = rows.mask(positions)[:, None, None]
        mask = jnp.broadcast_to(mask, (num_rows, 1, per_kv, num_queries, group_len))
        mask = mask.reshape(num_rows, 1, -1, group_len)  # [R, 1, M, S]
        scores = product("rkmh,rskh->rkms", q, k) * rows.scale
        scores = jnp.where(mask, scores, MASKED)
        new_peak = jnp.maximum(peak, scores.max(-1))
        # exp(MASKED - MASKED) is 1 until a query has attended to a position: mask once more.
        weights = jnp.where(mask, jnp.exp(scores - new_peak[..., None]), 0.0)
        rescale = jnp.exp(peak - new_peak)
        acc = acc * rescale[..., None] + product("rkms,rskh->rkmh", weights.astype(dtype), v)
        return new_peak, total * rescale + weights.sum(-1), acc

    zeros = jnp.zeros(q.shape[:-1], jnp.float32)
    carry = (zeros + MASKED, zeros, jnp.zeros(q.shape, jnp.float32))
    _, total, acc = jax.lax.fori_loop(first_group, end_group, add_group, carry)
    out = acc / jnp.maximum(total, TINY)[..., None]
    out = out.reshape(num_rows, kv_heads, per_kv, num_queries, head_dim)
    return jnp.moveaxis(out, 3, 1)  # [R, Q, K, G, H]


def _tokens(pages: jax.Array) -> jax.Array:  # [R, P, page_size, K, H] -> [R, S, K, H]
    return pages.reshape(pages.shape[0], -1, *pages.shape[3:])
