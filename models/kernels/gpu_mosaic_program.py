"""The program of ``gpu_mosaic``: FlashAttention-2 (arXiv 2307.08691, algorithm 1) over pages.

A program is one warpgroup, 128 threads. It computes attention of up to 64 queries of one KV head
over one split of a row's context, block by block::

    pool --copy engine, ``stages`` blocks ahead--> k, v  (shared memory)
    q k^T --tensor cores--> scores --threads--> weights  (shared memory)
    weights v --tensor cores--> added to the accumulator  (registers)

A decode row has one query per head of the group: 1 to 8 of the 64 rows of the tensor cores'
smallest product. The other rows are undefined and are not written to the output; their products are
free, because the tensor cores wait for memory anyway. Pallas synchronises the threads of a program
around every copy and store of shared memory.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.lax import div, rem

from kvflow_jax.cache.pool import NULL_PAGE, KVPool
from kvflow_jax.models.attention import MASKED, NO_WINDOW, TINY, UniformRows
from kvflow_jax.models.kernels.gpu_splits import merge_splits, num_splits

QUERIES, QUERY_STEP = 64, 8  # rows of the smallest product, and of the smallest copy
# Layout in shared memory that the tensor cores need for 16-bit matrices.
TILED = (plgpu.TilingTransform((QUERY_STEP, 64)), plgpu.SwizzleTransform(128))
MATRIX, VECTOR = plgpu.Layout.WGMMA, plgpu.Layout.WGMMA.reduce(1)  # assignment to threads


def attend_rows(
    layer: jax.Array,  # i32[]
    rows: UniformRows,
    pool: KVPool,
    *,
    block_len: int,  # tokens per fetch, a power of two of at least 64
    stages: int,  # number of blocks in shared memory
) -> jax.Array:  # shape of rows.q
    """Attend; the queries of all heads that share a KV head form groups of up to 64."""
    num_rows, num_queries, kv_heads, per_kv, head_dim = rows.q.shape
    page_size = pool.spec.page_size
    num = num_queries * per_kv  # queries per KV head
    group_len = min(QUERIES, -(-num // QUERY_STEP) * QUERY_STEP)
    num_groups = -(-num // group_len)
    q = jnp.moveaxis(rows.q, 1, 2).reshape(num_rows, kv_heads, num, head_dim)
    q = jnp.pad(q, ((0, 0), (0, 0), (0, num_groups * group_len - num), (0, 0)))
    # The last block may reach past the table.
    page_table = jnp.pad(
        rows.page_table + layer * pool.spec.num_pages,
        ((0, 0), (0, -rows.page_table.shape[1] % max(1, block_len // page_size))),
        constant_values=NULL_PAGE,
    )
    num_blocks = -(-page_table.shape[1] * page_size // block_len)
    splits = min(num_splits(num_rows * kv_heads * num_groups), num_blocks)
    num_programs = num_rows * kv_heads * num_groups * splits
    window = jnp.full_like(rows.query_len, NO_WINDOW) if rows.window is None else rows.window
    copies = 2 * block_len // min(page_size, block_len)
    outs, lse = plgpu.kernel(
        partial(
            _program, group_len=group_len, per_kv=per_kv, page_size=page_size, scale=rows.scale
        ),
        out_type=[
            jax.ShapeDtypeStruct((num_programs * group_len, head_dim), q.dtype),
            jax.ShapeDtypeStruct((num_programs, QUERIES), jnp.float32),
        ],
        scratch_types=[
            plgpu.SMEM((QUERIES, head_dim), q.dtype, transforms=TILED),
            plgpu.SMEM((stages, block_len, head_dim), q.dtype, transforms=TILED),
            plgpu.SMEM((stages, block_len, head_dim), q.dtype, transforms=TILED),
            plgpu.SMEM((QUERIES, block_len), q.dtype, transforms=TILED),
            plgpu.SMEM((QUERIES,), jnp.float32),
            plgpu.Barrier(),
            plgpu.Barrier(num_arrivals=copies, num_barriers=stages),
        ],
        grid=(num_rows, num_groups, splits, kv_heads),  # heads last: those of a page run together
        grid_names=("row", "group", "split", "head"),
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )(
        q.reshape(-1, head_dim),
        pool.data.reshape(-1, 2 * kv_heads * head_dim),
        page_table,
        jnp.stack([rows.query_start, rows.query_len, window], axis=1),
    )
    shape = (num_rows, kv_heads, num_groups, splits)
    lse = lse.reshape(*shape, QUERIES)[..., :group_len]
    # [R, K, groups, group_len, H]
    out = merge_splits(outs.reshape(*shape, group_len, head_dim), lse)
    out = out.reshape(num_rows, kv_heads, -1, head_dim)[:, :, :num]
    return jnp.moveaxis(out.reshape(num_rows, kv_heads, num_queries, per_kv, head_dim), 1, 2)


def _program(
    q_gmem: Any,  # [R * K * groups * group_len, H]
    tokens_gmem: Any,  # [num_tokens, 2 * K * H], the whole pool
    table_gmem: Any,  # i32[R, pages_per_seq]
    queries_gmem: Any,  # i32[R, 3]: query_start, query_len, window
    outs_gmem: Any,  # [programs * group_len, H]
    lse_gmem: Any,  # f32[programs, 64], log-sum-exp
    q_smem: Any,  # [64, H], then the output
    k_smem: Any,  # [stages, block_len, H]
    v_smem: Any,  # [stages, block_len, H]
    weights_smem: Any,  # [64, block_len]
    lse_smem: Any,  # f32[64]
    q_barrier: Any,
    kv_barriers: Any,  # one per stage
    *,
    group_len: int,
    per_kv: int,
    page_size: int,
    scale: float,
) -> None:
    row, group, split, head = map(jax.lax.axis_index, ("row", "group", "split", "head"))
    splits, kv_heads = jax.lax.axis_size("split"), jax.lax.axis_size("head")
    queries = (row * kv_heads + head) * jax.lax.axis_size("group") + group
    stages, block_len, head_dim = k_smem.shape
    chunk = min(page_size, block_len)  # contiguous tokens

    # The positions that any of the queries attends to, then this split of them, in whole blocks.
    query_start, query_len, window = (queries_gmem[row, i] for i in range(3))
    earliest = div(group * group_len, per_kv)
    latest = jnp.minimum(div(group * group_len + group_len - 1, per_kv), query_len - 1)
    first = jnp.maximum(query_start + earliest + 1 - window, 0)
    end = jnp.where(earliest < query_len, query_start + latest + 1, 0)
    first_block, end_block = div(first, block_len), div(end + block_len - 1, block_len)
    per_split = div(jnp.maximum(end_block - first_block, 0) + splits - 1, splits)
    first_block += split * per_split
    num_blocks = jnp.minimum(per_split, end_block - first_block)

    def fetch(i: jax.Array | int, stage: jax.Array | int) -> None:
        """Start the copy of a block, page by page."""
        for start in range(0, block_len, chunk):
            position = (first_block + i) * block_len + start
            page = table_gmem[row, div(position, page_size)]
            token = page * page_size + rem(position, page_size)
            for kv, smem in enumerate((k_smem, v_smem)):
                plgpu.copy_gmem_to_smem(
                    tokens_gmem.at[
                        pl.ds(token, chunk), pl.ds((2 * head + kv) * head_dim, head_dim)
                    ],
                    smem.at[stage, pl.ds(start, chunk)],
                    kv_barriers.at[stage],
                )

    def add_block(i: jax.Array, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        out, peak, total = carry
        stage, start = rem(i, stages), (first_block + i) * block_len
        plgpu.barrier_wait(kv_barriers.at[stage])
        scores = _product(q_smem, k_smem.at[stage], transposed=True) * scale  # [64, block_len]
        position = start + _iota(scores.shape, 1)
        is_visible = (position <= _broadcast(query_position, scores)) & (
            position > _broadcast(query_position - window, scores)
        )
        scores = jnp.where(is_visible, scores, MASKED)
        new_peak = jnp.maximum(peak, scores.max(1))
        # exp(MASKED - MASKED) is 1 until a query has attended to a position: mask once more.
        weights = jnp.where(is_visible, jnp.exp(scores - _broadcast(new_peak, scores)), 0.0)
        rescale = jnp.exp(peak - new_peak)
        weights_smem[...] = weights.astype(weights_smem.dtype)

        @pl.when(start + block_len > end)
        def _() -> None:
            # Past the context a page holds stale values, and 0 times infinity is NaN.
            v = v_smem[stage]
            is_context = start + _iota(v.shape, 0) < end
            v_smem[stage] = jnp.where(is_context, v, jnp.zeros_like(v))

        plgpu.commit_smem()
        added = _product(weights_smem, v_smem.at[stage])  # [64, H]
        pl.when(i + stages < num_blocks)(partial(fetch, i + stages, stage))
        return out * _broadcast(rescale, out) + added, new_peak, total * rescale + weights.sum(1)

    plgpu.copy_gmem_to_smem(
        q_gmem.at[pl.ds(queries * group_len, group_len)], q_smem.at[pl.ds(0, group_len)], q_barrier
    )
    for stage in range(stages):
        pl.when(stage < num_blocks)(partial(fetch, stage, stage))
    plgpu.barrier_wait(q_barrier)
    # The position of each query; -1 for padding, before every position.
    query = div(
        group * group_len + plgpu.broadcasted_iota(jnp.int32, (QUERIES,), 0, layout=VECTOR), per_kv
    )
    query_position = jnp.where(query < query_len, query_start + query, -1)
    zeros = plgpu.layout_cast(jnp.zeros(QUERIES, jnp.float32), VECTOR)
    no_out = plgpu.layout_cast(jnp.zeros((QUERIES, head_dim), jnp.float32), MATRIX)
    out, peak, total = jax.lax.fori_loop(0, num_blocks, add_block, (no_out, zeros + MASKED, zeros))

    total = jnp.maximum(total, TINY)
    q_smem[...] = (out / _broadcast(total, out)).astype(q_smem.dtype)
    lse_smem[...] = peak + jnp.log(total)
    plgpu.commit_smem()
    program = queries * splits + split
    out_gmem = outs_gmem.at[pl.ds(program * group_len, group_len)]
    plgpu.copy_smem_to_gmem(q_smem.at[pl.ds(0, group_len)], out_gmem)
    plgpu.copy_smem_to_gmem(lse_smem, lse_gmem.at[program])
    plgpu.wait_smem_to_gmem(0)


def _product(a: Any, b: Any, *, transposed: bool = False) -> jax.Array:
    """Compute a b, or a b^T, of matrices in shared memory, in float32."""

    def multiply(sums: Any) -> jax.Array:
        plgpu.wgmma(sums, a, b.T if transposed else b)
        # Waits for the product.
        finished: jax.Array = sums[...]
        return finished

    width = b.shape[0 if transposed else 1]
    sums = plgpu.ACC((a.shape[0], width), jnp.float32)  # type: ignore[attr-defined]
    product: jax.Array = pl.run_scoped(multiply, sums)
    return product


def _broadcast(vector: jax.Array, like: jax.Array) -> jax.Array:  # [M] -> [M, N]
    return jax.lax.broadcast_in_dim(vector, like.shape, (0,))


def _iota(shape: tuple[int, ...], axis: int) -> jax.Array:  # i32 of that shape
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=MATRIX)
