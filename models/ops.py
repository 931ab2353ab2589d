"""The expensive operations of a model, implemented per kind of device.

Layers are written once, against ``Ops``. An implementation also decides the form of its weights:
files and checkpoints hold them plain, and ``pack`` converts them when they are placed on a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from kvflow_jax.cache.pool import KVPool
from kvflow_jax.models.activations import gate
from kvflow_jax.models.attention import Attend, AttentionMetadata, attend
from kvflow_jax.models.config import AttentionConfig
from kvflow_jax.models.dtypes import NO_QUANTIZATION
from kvflow_jax.models.quantised import Int8Array, Weight, multiply, multiply_transposed
from kvflow_jax.models.ragged_dot import ragged_blocks
from kvflow_jax.models.rope import Angles, rotate


class Ops(Protocol):
    """Interface of the operations. Hashable: a static part of the model's structure."""

    @property
    def unroll(self) -> bool:
        """True if layers are unrolled; False if they are a scan over stacked weights."""
        ...

    @property
    def packs_on_device(self) -> bool:
        """True if ``pack`` takes a weight on its device; False if on the host, in numpy."""
        ...

    def weights_dtype(self, dtype: str) -> str:
        """Return the dtype of plain weights, before ``pack``, of a model in ``dtype``."""
        ...

    def weights_form(self, dtype: str) -> str:
        """Return the name of the form that weights have in a checkpoint of a model in ``dtype``.

        Weights that are packed on the host are packed there, others are plain.
        """
        ...

    def hidden_dtype(self, dtype: str) -> str:
        """Return the dtype of the activations between operations, of a model in ``dtype``."""
        ...

    def pack(self, weight: Any) -> Any:
        """Convert a matrix [num_in, num_out], numpy or jax, to the form that ``linear`` takes."""
        ...

    def floats(self, packed: Any) -> Any:
        """Return floats that are finite if and only if all of a packed weight is."""
        ...

    def linear(self, x: jax.Array, weight: Any, num_out: int) -> jax.Array:
        """Compute x W: [T, num_in] to [T, num_out]. ``weight`` is packed."""
        ...

    def linear_add(self, x: jax.Array, weight: Any, num_out: int, residual: jax.Array) -> jax.Array:
        """Compute x W + residual, [T, num_out], the sum after ``all_reduce``."""
        ...

    def rms_norm(self, x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
        """Divide the last axis by its root mean square, in float32, times ``weight``."""
        ...

    def gated(self, x: jax.Array, weight: Any, num_out: int, activation: str) -> jax.Array:
        """Compute act(x G) * (x U): [T, num_in] to [T, num_out]. ``weight`` is [G, U], packed."""
        ...

    @property
    def dense_experts(self) -> bool:
        """True if every token goes through every expert; then ``ragged_dot`` is not used."""
        ...

    def ragged_dot(self, x: jax.Array, weight: jax.Array, num_rows: jax.Array) -> jax.Array:
        """Multiply runs of rows, each by its own plain matrix: see ``ragged_dot.ragged_blocks``."""
        ...

    def all_reduce(self, part: jax.Array) -> jax.Array:
        """Sum the partial products of a row-parallel matrix over the devices."""
        ...

    def pack_table(self, table: Any) -> Any:
        """Convert a table [num_rows, width] to the form that ``lookup`` and ``project`` take."""
        ...

    def lookup(self, table: Any, rows: jax.Array, width: int) -> jax.Array:
        """Return rows of a table, i32[T] to [T, width]; indices past the end give the last row."""
        ...

    def project(self, x: jax.Array, table: Any, num_rows: int) -> jax.Array:
        """Multiply with every row of a table: [T, width] to f32[T, num_rows]."""
        ...

    def rotate_and_attend(
        self,
        layer: jax.Array,  # i32[]
        qkv: jax.Array,  # [num_tokens, num_heads + 2 * num_kv_heads, head_dim]
        angles: Angles,  # of this layer
        metadata: AttentionMetadata,
        pool: KVPool,
        config: AttentionConfig,
    ) -> tuple[jax.Array, KVPool]:
        """Apply RoPE to queries and keys, then do as ``attention.attend``."""
        ...


@dataclass(frozen=True)
class XlaOps:
    """Operations compiled by XLA, on any device and in any dtype; matrices are [in, out].

    Attributes:
        attention: block-wise attention, or a kernel of ``models.kernels``.
        platform: tpu, cpu or gpu, whose compilers differ. On CPU and GPU a scan copies every slice
            of the weights, so layers are unrolled there: scanned, a decode step is 1.2 to 1.7 times
            slower on CPU and moves three times the bytes on GPU. ``jax.lax.ragged_dot`` pays on
            neither, see ``ragged_dot`` and ``moe``.
        quantize: "int8" keeps matrices and tables as ``Int8Array``, "none" as they are.
    """

    attention: Attend = attend
    platform: str = "tpu"
    quantize: str = NO_QUANTIZATION

    packs_on_device = True

    @property
    def unroll(self) -> bool:
        return self.platform != "tpu"

    @property
    def dense_experts(self) -> bool:
        return self.platform == "gpu"

    def weights_dtype(self, dtype: str) -> str:
        return dtype

    def weights_form(self, dtype: str) -> str:
        return dtype

    def hidden_dtype(self, dtype: str) -> str:
        # XLA's CPU compiler widens 16-bit floats around every operation but products.
        return "float32" if self.platform == "cpu" else dtype

    def pack(self, weight: Any) -> Any:
        return weight if self.quantize == NO_QUANTIZATION else Int8Array.quantise(weight, axis=-2)

    def floats(self, packed: Any) -> Any:
        return packed.scale if isinstance(packed, Int8Array) else packed

    def linear(self, x: jax.Array, weight: Weight, num_out: int) -> jax.Array:
        if isinstance(weight, Int8Array):
            return multiply(x, weight, self.platform).astype(x.dtype)
        # A CPU multiplies 16-bit floats fast only if sums are float32. Elsewhere they are, and the
        # result has the dtype of the weights.
        sums = jnp.float32 if self.platform == "cpu" else None
        x = x.astype(weight.dtype)
        return jnp.einsum("ti,io->to", x, weight, preferred_element_type=sums)

    def linear_add(
        self, x: jax.Array, weight: Weight, num_out: int, residual: jax.Array
    ) -> jax.Array:
        return residual + self.all_reduce(self.linear(x, weight, num_out))

    def rms_norm(self, x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
        x32 = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
        return (x32 * scale).astype(x.dtype) * weight

    def gated(self, x: jax.Array, weight: Weight, num_out: int, activation: str) -> jax.Array:
        return gate(self.linear(x, weight, 2 * num_out), activation)

    def ragged_dot(self, x: jax.Array, weight: jax.Array, num_rows: jax.Array) -> jax.Array:
        product = ragged_blocks if self.platform == "cpu" else jax.lax.ragged_dot
        return product(x, weight, num_rows)

    def all_reduce(self, part: jax.Array) -> jax.Array:
        return part

    def pack_table(self, table: Any) -> Any:
        return table if self.quantize == NO_QUANTIZATION else Int8Array.quantise(table, axis=-1)

    def lookup(self, table: Weight, rows: jax.Array, width: int) -> jax.Array:
        if isinstance(table, Int8Array):
            found = table.rows(rows)
        else:
            found = table.at[rows].get(mode="clip")
        return found.astype(self.hidden_dtype(str(table.dtype)))

    def project(self, x: jax.Array, table: Weight, num_rows: int) -> jax.Array:
        if isinstance(table, Int8Array):
            return multiply_transposed(x, table, self.platform)
        x = x.astype(table.dtype)
        return jnp.einsum("td,vd->tv", x, table, preferred_element_type=jnp.float32)

    def rotate_and_attend(
        self,
        layer: jax.Array,
        qkv: jax.Array,
        angles: Angles,
        metadata: AttentionMetadata,
        pool: KVPool,
        config: AttentionConfig,
    ) -> tuple[jax.Array, KVPool]:
        k_end = qkv.shape[1] - pool.spec.num_kv_heads
        q_end = k_end - pool.spec.num_kv_heads
        q, k, v = qkv[:, :q_end], qkv[:, q_end:k_end], qkv[:, k_end:]
        q, k = rotate(q, *angles), rotate(k, *angles)
        return self.attention(layer, q, k, v, metadata, pool, config)


XLA = XlaOps()
XLA_ON_CPU = XlaOps(platform="cpu")
XLA_ON_GPU = XlaOps(platform="gpu")
