"""Attention of a ragged batch over the paged pool.

A batch is a list of *rows*. The first ``num_decode`` rows hold one query token each, every later
row a tile of up to ``tile`` consecutive query tokens of one sequence (a prompt's chunk is cut into
tiles). Flat tokens are laid out in row order, so ``num_tokens = num_decode + num_tiles * tile``.
All shapes are static; what is padding is said by ``query_len``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp

from kvflow_jax.cache.pool import NULL_PAGE, KVPool
from kvflow_jax.models.config import AttentionKind

# Tokens that one turn of the online softmax takes: more amortises a turn, fewer waste less past the
# end of a context. Measured on CPU.
DECODE_GROUP_LEN, TILE_GROUP_LEN = 256, 512
MASKED = -1e30  # finite, so that a row that sees nothing has no NaN
TINY = 1e-30
EVERYTHING = 1 << 30  # past the end of any context


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["page_table", "query_start", "query_len", "write_kv_slots"],
    meta_fields=["num_decode", "tile"],
)
@dataclass(frozen=True)
class AttentionMetadata:
    """Which tokens of a batch attend to which pages.

    Query j of row r stands at position ``query_start[r] + j`` of its sequence and attends to
    positions up to itself, as far back as the layer's window reaches, whose KV lies in
    ``page_table[r]``. Rows of ``query_len`` 0 are padding.
    """

    page_table: jax.Array  # i32[num_rows, pages_per_seq], padded with the null page
    query_start: jax.Array  # i32[num_rows]
    query_len: jax.Array  # i32[num_rows]
    write_kv_slots: jax.Array  # i32[num_tokens], out of range where the token is padding
    num_decode: int
    tile: int


class Attend(Protocol):
    """See ``attend``, which all implementations must equal."""

    def __call__(
        self,
        layer: jax.Array,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        rows: AttentionMetadata,
        pool: KVPool,
        kind: AttentionKind,
    ) -> tuple[jax.Array, KVPool]: ...


def attend(
    layer: jax.Array,  # i32[]
    q: jax.Array,  # [num_tokens, num_heads, head_dim]
    k: jax.Array,  # [num_tokens, num_kv_heads, head_dim]
    v: jax.Array,  # [num_tokens, num_kv_heads, head_dim]
    rows: AttentionMetadata,
    pool: KVPool,
    kind: AttentionKind,
) -> tuple[jax.Array, KVPool]:
    """Write the K and V of a layer's new tokens, then attend to the pool.

    Returns ([num_tokens, num_heads, head_dim], pool); padding comes out as zeros.
    """
    pool = pool.write(layer, rows.write_kv_slots, k, v)
    return attend_to_pool(layer, q, rows, pool, kind), pool


def attend_to_pool(
    layer: jax.Array, q: jax.Array, rows: AttentionMetadata, pool: KVPool, kind: AttentionKind
) -> jax.Array:
    """``attend`` where K and V are written already."""
    return by_rows(_attend_blocks, layer, q, rows, pool, kind)


def attend_reference(
    layer: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    rows: AttentionMetadata,
    pool: KVPool,
    kind: AttentionKind,
) -> tuple[jax.Array, KVPool]:
    """What ``attend`` must equal: gathers every page of the table, softmax in float32."""
    pool = pool.write(layer, rows.write_kv_slots, k, v)
    return by_rows(_attend_all, layer, q, rows, pool, kind), pool


def window_of(kind: AttentionKind, layer: jax.Array) -> jax.Array:
    """Tokens that a query of this layer sees, i32[]; 0 is all of them."""
    return jnp.asarray(kind.windows, jnp.int32)[layer] if kind.has_windows else jnp.int32(0)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["q", "page_table", "query_start", "query_len", "window"],
    meta_fields=["scale"],
)
@dataclass(frozen=True)
class UniformRows:
    """Rows with the same number of queries Q; query heads stand in G groups for K kv heads."""

    q: jax.Array  # [R, Q, K, G, H]
    page_table: jax.Array  # i32[R, pages_per_seq]
    query_start: jax.Array  # i32[R]
    query_len: jax.Array  # i32[R]
    window: jax.Array | None  # i32[R], None where no layer of the model has one
    scale: float

    def mask(self, positions: jax.Array) -> jax.Array:  # i32[S] -> bool[R, Q, S]
        """Which positions each query may see; padding sees none."""
        query = jnp.arange(self.q.shape[1])
        own = (self.query_start[:, None] + query)[..., None]
        seen = positions <= own
        if self.window is not None:
            seen &= positions > own - self.window[:, None, None]
        return seen & (query < self.query_len[:, None])[..., None]

    def first_seen(self) -> jax.Array:
        """The first position that any query sees, i32[]."""
        if self.window is None:
            return jnp.int32(0)
        first = jnp.maximum(self.query_start + 1 - self.window, 0)
        return jnp.where(self.query_len > 0, first, EVERYTHING).min()

    def only_context(self, v: jax.Array, positions: jax.Array) -> jax.Array:
        """V [R, S, K, H] with zeros past each row's context: what a page held before may be
        anything, and 0 times infinity is no number."""
        is_context = positions < (self.query_start + self.query_len)[:, None]
        return jnp.where(is_context[..., None, None], v, 0.0)


RowAttention = Callable[[jax.Array, UniformRows, KVPool], jax.Array]  # -> like q


def by_rows(
    attend_rows: RowAttention,
    layer: jax.Array,
    q: jax.Array,
    rows: AttentionMetadata,
    pool: KVPool,
    kind: AttentionKind,
) -> jax.Array:
    """Attend the decode rows and the tiles, each kind at its own shape."""
    window = None
    if kind.has_windows:
        window = window_of(kind, layer)
        window = jnp.where(window > 0, window, EVERYTHING)
    grouped = q.reshape(q.shape[0], pool.spec.num_kv_heads, -1, q.shape[-1])  # [T, K, G, H]
    n = rows.num_decode
    outs = []
    for part, tokens, width in (
        (slice(n), grouped[:n], 1),
        (slice(n, None), grouped[n:], rows.tile),
    ):
        if tokens.shape[0]:
            equal = UniformRows(
                tokens.reshape(-1, width, *grouped.shape[1:]),
                rows.page_table[part],
                rows.query_start[part],
                rows.query_len[part],
                None if window is None else jnp.full_like(rows.query_len[part], window),
                kind.scale,
            )
            outs.append(attend_rows(layer, equal, pool).reshape(-1, *q.shape[1:]))
    return jnp.concatenate(outs).astype(q.dtype)


def _attend_all(layer: jax.Array, rows: UniformRows, pool: KVPool) -> jax.Array:
    k, v = (_tokens(kv).astype(jnp.float32) for kv in pool.read(layer, rows.page_table))
    scores = jnp.einsum("rqkgh,rskh->rkgqs", rows.q.astype(jnp.float32), k)
    mask = rows.mask(jnp.arange(k.shape[1]))[:, None, None]  # [R, 1, 1, Q, S]
    scores = jnp.where(mask, scores * rows.scale, MASKED)
    weights = jnp.where(mask, jnp.exp(scores - scores.max(-1, keepdims=True)), 0.0)
    v = rows.only_context(v, jnp.arange(v.shape[1]))
    weights /= jnp.maximum(weights.sum(-1, keepdims=True), TINY)
    return jnp.einsum("rkgqs,rskh->rqkgh", weights, v)


def _attend_blocks(layer: jax.Array, rows: UniformRows, pool: KVPool) -> jax.Array:
    """Online softmax over groups of pages (FlashAttention-2, arXiv 2307.08691, algorithm 1).

    The loop's bounds are dynamic: one compiled shape serves all context lengths. Where the layer
    has a window the loop begins with the first group that any query still sees.
    """
    attended: jax.Array = jax.lax.platform_dependent(
        layer, rows, pool, cpu=attend_per_tile, default=attend_batched
    )
    return attended


def attend_per_tile(layer: jax.Array, rows: UniformRows, pool: KVPool) -> jax.Array:
    """In float32, as a CPU wants it: decode rows together, as far as the longest of them; tiles
    one by one, each only as far as its own last query sees, so that a chunk's early tiles do not
    pay for its late ones."""
    if rows.q.shape[1] == 1:
        return _attend_groups(layer, rows, pool, jnp.float32)

    def attend_tile(tile: UniformRows) -> jax.Array:
        single = jax.tree.map(lambda x: x[None], tile)
        return _attend_groups(layer, single, pool, jnp.float32)[0]

    return jax.lax.map(attend_tile, rows)


def attend_batched(layer: jax.Array, rows: UniformRows, pool: KVPool) -> jax.Array:
    """In the pool's dtype, summed in float32, as an accelerator wants it: all rows together, for
    one tile keeps none busy."""
    return _attend_groups(layer, rows, pool, pool.data.dtype)


def _attend_groups(
    layer: jax.Array, rows: UniformRows, pool: KVPool, dtype: jax.typing.DTypeLike
) -> jax.Array:
    num_rows, num_queries, kv_heads, per_kv, head_dim = rows.q.shape
    pages_per_seq = rows.page_table.shape[1]
    wanted = DECODE_GROUP_LEN if num_queries == 1 else TILE_GROUP_LEN
    group = max(1, min(wanted // pool.spec.page_size, pages_per_seq))
    group_len = group * pool.spec.page_size
    page_table = jnp.pad(
        rows.page_table, ((0, 0), (0, -pages_per_seq % group)), constant_values=NULL_PAGE
    )
    context_len = jnp.where(rows.query_len > 0, rows.query_start + rows.query_len, 0)
    first_group = rows.first_seen() // group_len
    end_group = -(-context_len.max() // group_len)
    # The queries of all heads that share a KV head make one matrix: M = per_kv * num_queries.
    q = jnp.moveaxis(rows.q.astype(dtype), 1, 3)  # [R, K, G, Q, H]
    q = q.reshape(num_rows, kv_heads, -1, head_dim)  # [R, K, M, H]

    product = partial(jnp.einsum, preferred_element_type=jnp.float32)

    def add_group(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        peak, total, acc = carry  # f32[R, K, M], f32[R, K, M], f32[R, K, M, H]
        pages = jax.lax.dynamic_slice_in_dim(page_table, i * group, group, axis=1)
        k, v = (_tokens(kv).astype(dtype) for kv in pool.read(layer, pages))  # [R, S, K, H]
        positions = i * group_len + jnp.arange(group_len)
        v = rows.only_context(v, positions)
        mask = rows.mask(positions)[:, None, None]
        mask = jnp.broadcast_to(mask, (num_rows, 1, per_kv, num_queries, group_len))
        mask = mask.reshape(num_rows, 1, -1, group_len)  # [R, 1, M, S]
        scores = product("rkmh,rskh->rkms", q, k) * rows.scale
        scores = jnp.where(mask, scores, MASKED)
        new_peak = jnp.maximum(peak, scores.max(-1))
        # exp(MASKED - MASKED) is 1 while a query has seen nothing: hence the second mask.
        weights = jnp.where(mask, jnp.exp(scores - new_peak[..., None]), 0.0)
        shrink = jnp.exp(peak - new_peak)
        acc = acc * shrink[..., None] + product("rkms,rskh->rkmh", weights.astype(dtype), v)
        return new_peak, total * shrink + weights.sum(-1), acc

    zeros = jnp.zeros(q.shape[:-1], jnp.float32)
    carry = (zeros + MASKED, zeros, jnp.zeros(q.shape, jnp.float32))
    _, total, acc = jax.lax.fori_loop(first_group, end_group, add_group, carry)
    out = acc / jnp.maximum(total, TINY)[..., None]
    out = out.reshape(num_rows, kv_heads, per_kv, num_queries, head_dim)
    return jnp.moveaxis(out, 3, 1)  # [R, Q, K, G, H]


def _tokens(pages: jax.Array) -> jax.Array:  # [R, P, page_size, K, H] -> [R, S, K, H]
    return pages.reshape(pages.shape[0], -1, *pages.shape[3:])
