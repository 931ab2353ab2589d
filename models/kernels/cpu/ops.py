"""The C++ kernels as ``Ops``: float32 on CPU.

Speed relative to XLA on 2 cores with AVX2 (``experiments.kernel_bench``): products of 1 to 32 rows
1.7 to 2.4 times, of 512 rows equal; attention of decode rows 2 to 6 times, of tiles 2.2 to 2.5
times. A row of a product, and a row of attention, is bit-identical in every batch.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvflow_jax.cache.pool import KVPool
from kvflow_jax.models.attention import AttentionMetadata, layer_window
from kvflow_jax.models.config import AttentionConfig, ModelConfig
from kvflow_jax.models.kernels.cpu.build import register
from kvflow_jax.models.memory import aligned_empty
from kvflow_jax.models.ragged_dot import ragged_blocks

PANEL = 24  # columns of a panel, ``kPanel`` in linear.h
HEAD_DIM_STEP, MAX_HEAD_DIM = 16, 256


class NativeOps:
    """``Ops`` with matrices in panels of 24 columns, [num_panels, in, 24], read sequentially."""

    unroll = True
    dense_experts = False

    def packed_shape(self, num_in: int, num_out: int) -> tuple[int, ...]:
        return -(-num_out // PANEL), num_in, PANEL

    def pack(self, weight: Any) -> Any:
        num_in, num_out = weight.shape
        full, rest = divmod(num_out, PANEL)
        if not isinstance(weight, np.ndarray):
            weight = jnp.pad(weight, ((0, 0), (0, -num_out % PANEL)))
            return weight.reshape(num_in, -1, PANEL).swapaxes(0, 1)
        panels = aligned_empty(self.packed_shape(num_in, num_out), weight.dtype)
        whole = weight[:, : full * PANEL].reshape(num_in, full, PANEL)
        panels[:full] = whole.swapaxes(0, 1)
        if rest:
            panels[full, :, :rest], panels[full, :, rest:] = weight[:, full * PANEL :], 0.0
        return panels

    def linear(self, x: jax.Array, weight: jax.Array, num_out: int) -> jax.Array:
        out = jax.ShapeDtypeStruct((x.shape[0], num_out), jnp.float32)
        return jax.ffi.ffi_call("kvflow_linear", out)(x, weight)

    def ragged_dot(self, x: jax.Array, weight: jax.Array, num_rows: jax.Array) -> jax.Array:
        return ragged_blocks(x, weight, num_rows)

    def all_reduce(self, part: jax.Array) -> jax.Array:
        return part

    def table_shape(self, num_rows: int, width: int) -> tuple[int, ...]:
        return self.packed_shape(width, num_rows)

    def pack_table(self, table: Any) -> Any:
        return self.pack(table.T)

    def lookup(self, table: jax.Array, rows: jax.Array) -> jax.Array:
        return table.at[rows // PANEL, :, rows % PANEL].get(mode="clip")

    def project(self, x: jax.Array, table: jax.Array, num_rows: int) -> jax.Array:
        return self.linear(x, table, num_rows)

    def attend(
        self,
        layer: jax.Array,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        metadata: AttentionMetadata,
        pool: KVPool,
        config: AttentionConfig,
    ) -> tuple[jax.Array, KVPool]:
        pool = pool.write(layer, metadata.write_kv_slots, k, v)
        window, scale = layer_window(config, layer), np.float32(config.scale)
        attend = partial(_attend, layer, pool, window, scale)
        n, outs = metadata.num_decode, []
        if n:
            end = metadata.query_start[:n] + metadata.query_len[:n]
            context_len = jnp.where(metadata.query_len[:n] > 0, end, 0)
            outs.append(attend("decode", q[:n], metadata.page_table[:n], context_len))
        if q.shape[0] > n:
            spans = metadata.query_start[n:], metadata.query_len[n:]
            outs.append(attend("tile", q[n:], metadata.page_table[n:], *spans))
        return jnp.concatenate(outs), pool


def _attend(
    layer: jax.Array,  # i32[]
    pool: KVPool,
    window: jax.Array,  # i32[]
    scale: np.float32,
    kind: str,  # decode or tile
    q: jax.Array,
    page_table: jax.Array,
    *spans: jax.Array,
) -> jax.Array:
    call = jax.ffi.ffi_call(f"kvflow_{kind}_attention", jax.ShapeDtypeStruct(q.shape, jnp.float32))
    num_pages = np.int64(pool.spec.num_pages)
    return call(q, pool.data, layer, window, page_table, *spans, num_pages=num_pages, scale=scale)


NATIVE = NativeOps()


def native_ops(config: ModelConfig, dtype: str, cache_dir: Path) -> NativeOps | None:
    """Return the kernels, or None if they do not support the model or cannot be built here."""
    if dtype != "float32":
        return None
    if config.head_dim % HEAD_DIM_STEP or config.head_dim > MAX_HEAD_DIM:
        return None
    return NATIVE if register(cache_dir) else None
