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
from kvflow_jax.models.attention import Attend, AttentionMetadata, attend
from kvflow_jax.models.config import AttentionConfig
from kvflow_jax.models.ragged_dot import ragged_blocks


class Ops(Protocol):
    """Interface of the operations. Hashable: a static part of the model's structure."""

    @property
    def unroll(self) -> bool:
        """True if layers are unrolled; False if they are a scan over stacked weights."""
        ...

    def packed_shape(self, num_in: int, num_out: int) -> tuple[int, ...]:
        """Return the shape of a packed matrix [num_in, num_out]."""
        ...

    def pack(self, weight: Any) -> Any:
        """Convert a matrix [num_in, num_out], numpy or jax, to the form that ``linear`` takes."""
        ...

    def linear(self, x: jax.Array, weight: jax.Array, num_out: int) -> jax.Array:
        """Compute x W: [T, num_in] to [T, num_out]. ``weight`` is packed."""
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

    def table_shape(self, num_rows: int, width: int) -> tuple[int, ...]:
        """Return the shape of a packed table [num_rows, width]."""
        ...

    def pack_table(self, table: Any) -> Any:
        """Convert a table [num_rows, width] to the form that ``lookup`` and ``project`` take."""
        ...

    def lookup(self, table: jax.Array, rows: jax.Array) -> jax.Array:
        """Return rows of a table, i32[T] to [T, width]; indices past the end give the last row."""
        ...

    def project(self, x: jax.Array, table: jax.Array, num_rows: int) -> jax.Array:
        """Multiply with every row of a table: [T, width] to f32[T, num_rows]."""
        ...

    def attend(
        self,
        layer: jax.Array,  # i32[]
        q: jax.Array,  # [num_tokens, num_heads, head_dim]
        k: jax.Array,  # [num_tokens, num_kv_heads, head_dim]
        v: jax.Array,  # [num_tokens, num_kv_heads, head_dim]
        metadata: AttentionMetadata,
        pool: KVPool,
        config: AttentionConfig,
    ) -> tuple[jax.Array, KVPool]:
        """See ``attention.attend``."""
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
    """

    attention: Attend = attend
    platform: str = "tpu"

    @property
    def unroll(self) -> bool:
        return self.platform != "tpu"

    @property
    def dense_experts(self) -> bool:
        return self.platform == "gpu"

    def packed_shape(self, num_in: int, num_out: int) -> tuple[int, ...]:
        return num_in, num_out

    def pack(self, weight: Any) -> Any:
        return weight

    def linear(self, x: jax.Array, weight: jax.Array, num_out: int) -> jax.Array:
        return jnp.einsum("ti,io->to", x, weight)

    def ragged_dot(self, x: jax.Array, weight: jax.Array, num_rows: jax.Array) -> jax.Array:
        product = ragged_blocks if self.platform == "cpu" else jax.lax.ragged_dot
        return product(x, weight, num_rows)

    def all_reduce(self, part: jax.Array) -> jax.Array:
        return part

    def table_shape(self, num_rows: int, width: int) -> tuple[int, ...]:
        return num_rows, width

    def pack_table(self, table: Any) -> Any:
        return table

    def lookup(self, table: jax.Array, rows: jax.Array) -> jax.Array:
        return table.at[rows].get(mode="clip")

    def project(self, x: jax.Array, table: jax.Array, num_rows: int) -> jax.Array:
        return jnp.einsum("td,vd->tv", x, table, preferred_element_type=jnp.float32)

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
        return self.attention(layer, q, k, v, metadata, pool, config)


XLA = XlaOps()
XLA_ON_CPU = XlaOps(platform="cpu")
XLA_ON_GPU = XlaOps(platform="gpu")
