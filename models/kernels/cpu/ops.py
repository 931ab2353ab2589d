"""The C++ kernels as ``Ops`` on CPU: activations in float32, weights also in 16, 8 and 4 bits.

A row of attention is bit-identical in every batch. So is a row of a product, but for weights in 8
and 4 bits: few rows are multiplied with these in integers of 16 bits. Else, unless weights are
float32, the rows of a product's left operand are rounded to bfloat16 where the CPU multiplies that.
``experiments.kernel_bench`` compares them with XLA's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvflow_jax.cache.pool import KVPool
from kvflow_jax.models.activations import gate
from kvflow_jax.models.attention import AttentionMetadata, layer_window
from kvflow_jax.models.config import AttentionConfig, ModelConfig
from kvflow_jax.models.dtypes import NO_QUANTIZATION
from kvflow_jax.models.kernels.cpu.build import Library, register
from kvflow_jax.models.kernels.cpu.formats import (
    BFloat16Format,
    Float32Format,
    Format,
    GroupedFormat,
    floats,
)
from kvflow_jax.models.ragged_dot import ragged_blocks
from kvflow_jax.models.rope import Angles

FLOAT32_VECS = 3  # vectors of a panel, ``Float32Panels::kVecs``
HEAD_DIM_STEP, MAX_HEAD_DIM = 16, 256
ACTIVATION_CODES = {"silu": 0, "gelu_tanh": 1}  # ``Activation`` of linear.h


@dataclass(frozen=True)
class NativeOps:
    """``Ops`` with matrices in panels, which are read from end to end.

    Attributes:
        format: of the layers' matrices.
        table_format: of the embedding and of the output projection.
    """

    format: Format
    table_format: Format

    unroll = True
    packs_on_device = False
    dense_experts = False

    def weights_dtype(self, dtype: str) -> str:
        return "float32" if isinstance(self.format, GroupedFormat) else dtype

    def weights_form(self, dtype: str) -> str:
        formats = (self.format, self.table_format)
        return "-".join(dict.fromkeys(f"{form.name}x{form.panel}" for form in formats))

    def hidden_dtype(self, dtype: str) -> str:
        return "float32"

    def pack(self, weight: Any) -> Any:
        return self.format.pack(weight)

    def floats(self, packed: Any) -> Any:
        return floats(packed)

    def linear(self, x: jax.Array, weight: jax.Array, num_out: int) -> jax.Array:
        return _product(self.format, "linear", x, weight, num_out)

    def linear_add(
        self, x: jax.Array, weight: jax.Array, num_out: int, residual: jax.Array
    ) -> jax.Array:
        return _product(self.format, "linear_add", x, weight, num_out, residual)

    def rms_norm(self, x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
        call = jax.ffi.ffi_call("kvflow_rms_norm", jax.ShapeDtypeStruct(x.shape, jnp.float32))
        return call(x, weight.astype(jnp.float32), eps=np.float32(eps))

    def gated(self, x: jax.Array, weight: jax.Array, num_out: int, activation: str) -> jax.Array:
        if num_out % self.format.panel:
            return gate(self.linear(x, weight, 2 * num_out), activation)
        code = np.int64(ACTIVATION_CODES[activation])
        return _product(self.format, "gated", x, weight, num_out, activation=code)

    def ragged_dot(self, x: jax.Array, weight: jax.Array, num_rows: jax.Array) -> jax.Array:
        return ragged_blocks(x, weight, num_rows)

    def all_reduce(self, part: jax.Array) -> jax.Array:
        return part

    def pack_table(self, table: Any) -> Any:
        return self.table_format.pack(table.T)

    def lookup(self, table: jax.Array, rows: jax.Array, width: int) -> jax.Array:
        return self.table_format.column(table, rows, width)

    def project(self, x: jax.Array, table: jax.Array, num_rows: int) -> jax.Array:
        return _product(self.table_format, "linear", x, table, num_rows)

    def rotate_and_attend(
        self,
        layer: jax.Array,
        qkv: jax.Array,
        angles: Angles,
        metadata: AttentionMetadata,
        pool: KVPool,
        config: AttentionConfig,
    ) -> tuple[jax.Array, KVPool]:
        num_tokens, num_heads = qkv.shape[0], qkv.shape[1] - 2 * pool.spec.num_kv_heads
        q_out = jax.ShapeDtypeStruct((num_tokens, num_heads, qkv.shape[2]), jnp.float32)
        pool_out = jax.ShapeDtypeStruct(pool.data.shape, pool.data.dtype)
        call = jax.ffi.ffi_call(
            f"kvflow_store_kv_{pool.spec.dtype}", (q_out, pool_out), input_output_aliases={5: 1}
        )
        num_pages = np.int64(pool.spec.num_pages)
        slots = metadata.write_kv_slots
        q, data = call(qkv, *angles, slots, layer, pool.data, num_pages=num_pages)
        pool = replace(pool, data=data)
        return _attend_to_pool(layer, q, metadata, pool, config), pool


def _product(
    form: Format,
    kind: str,
    x: jax.Array,
    weight: jax.Array,
    num_out: int,
    *others: jax.Array,
    **attributes: np.int64,
) -> jax.Array:
    out = jax.ShapeDtypeStruct((x.shape[0], num_out), jnp.float32)
    call = jax.ffi.ffi_call(f"kvflow_{kind}_{form.kernel(x.shape[0])}", out)
    return call(x.astype(jnp.float32), weight, *others, **attributes)


def _attend_to_pool(
    layer: jax.Array,
    q: jax.Array,
    metadata: AttentionMetadata,
    pool: KVPool,
    config: AttentionConfig,
) -> jax.Array:
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
    return jnp.concatenate(outs)


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
    name = f"kvflow_{kind}_attention_{pool.spec.dtype}"
    call = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct(q.shape, jnp.float32))
    num_pages = np.int64(pool.spec.num_pages)
    return call(q, pool.data, layer, window, page_table, *spans, num_pages=num_pages, scale=scale)


def ops_of(library: Library, weights: str) -> NativeOps:
    """Return the kernels of a library for weights in float32, bfloat16, int8 or int4.

    With int4 tables are int8: few bits cost most in the output projection.
    """
    formats: dict[str, Format] = {
        "float32": Float32Format(FLOAT32_VECS * library.lanes),
        "bfloat16": BFloat16Format(),
        "int8": GroupedFormat(8),
        "int4": GroupedFormat(4),
    }
    return NativeOps(formats[weights], formats["int8" if weights == "int4" else weights])


def native_ops(
    config: ModelConfig, dtype: str, cache_dir: Path, quantize: str = NO_QUANTIZATION
) -> NativeOps | None:
    """Return the kernels, or None if they do not support the model or cannot be built here.

    Args:
        dtype: of weights that are not quantised, and of the KV pool.
        quantize: "int8", "int4" or "none".
    """
    library = register(cache_dir) if _supports(config, dtype) else None
    weights = dtype if quantize == NO_QUANTIZATION else quantize
    return None if library is None else ops_of(library, weights)


def has_fast_bfloat16(config: ModelConfig, cache_dir: Path) -> bool:
    """True if this CPU's kernels multiply this model in bfloat16 faster than in float32."""
    library = register(cache_dir) if _supports(config, "bfloat16") else None
    return library is not None and library.isa.has_fast_bfloat16


def _supports(config: ModelConfig, dtype: str) -> bool:
    """True if the kernels compute this model in this dtype."""
    if dtype not in ("float32", "bfloat16") or (config.moe is not None and dtype != "float32"):
        return False
    return config.head_dim % HEAD_DIM_STEP == 0 and config.head_dim <= MAX_HEAD_DIM
