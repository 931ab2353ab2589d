"""What costs time in a model, and how a kind of device computes it.

Layers are written once, against ``Ops``. An implementation also decides how it wants its weights:
files and checkpoints hold them plain, ``pack`` brings them into its form when they are placed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from kvflow_jax.cache.pool import KVPool
from kvflow_jax.models.attention import Attend, AttentionMetadata, attend
from kvflow_jax.models.config import AttentionKind
from kvflow_jax.models.ragged_dot import ragged_blocks


class Ops(Protocol):
    """Hashable: a static part of the model's structure."""

    @property
    def unroll(self) -> bool:
        """Whether layers run one after the other rather than in a scan over stacked weights."""

    def packed_shape(self, num_in: int, num_out: int) -> tuple[int, ...]:
        """Shape of a packed matrix."""

    def pack(self, weight: Any) -> Any:
        """A matrix [num_in, num_out], numpy or jax, in the form that ``linear`` takes."""

    def linear(self, x: jax.Array, weight: jax.Array, num_out: int) -> jax.Array:
        """x W: [T, num_in] to [T, num_out]."""

    @property
    def every_expert(self) -> bool:
        """Whether tokens go through all experts, and the chosen ones are picked: no ``ragged``."""

    def ragged(self, x: jax.Array, weight: jax.Array, num_rows: jax.Array) -> jax.Array:
        """Runs of rows, each with its own plain matrix: see ``ragged.ragged_blocks``."""

    def all_reduce(self, part: jax.Array) -> jax.Array:
        """The whole of a product whose inputs are cut between devices, from what each has of it."""

    def table_shape(self, num_rows: int, width: int) -> tuple[int, ...]: ...

    def pack_table(self, table: Any) -> Any:
        """A table [num_rows, width] in the form that ``lookup`` and ``project`` take."""

    def lookup(self, table: jax.Array, rows: jax.Array) -> jax.Array:
        """Rows of a table, i32[T] to [T, width]; past its end the last one."""

    def project(self, x: jax.Array, table: jax.Array, num_rows: int) -> jax.Array:
        """Products with every row of a table: [T, width] to f32[T, num_rows]."""

    def attend(
        self,
        layer: jax.Array,  # i32[]
        q: jax.Array,  # [num_tokens, num_heads, head_dim]
        k: jax.Array,  # [num_tokens, num_kv_heads, head_dim]
        v: jax.Array,  # [num_tokens, num_kv_heads, head_dim]
        rows: AttentionMetadata,
        pool: KVPool,
        kind: AttentionKind,
    ) -> tuple[jax.Array, KVPool]:
        """See ``attention.attend``."""


@dataclass(frozen=True)
class XlaOps:
    """What XLA makes of it, on any device and in any dtype; matrices are [in, out].

    Attributes:
        attention: block-wise attention, or a kernel of ``models.kernels``.
        platform: tpu, cpu or gpu, for what their compilers do otherwise. On CPU and GPU a scan
            copies every slice of the weights that it takes, so layers are unrolled: a decode step
            is 1.2 to 1.7 times slower on CPU, and on GPU moves three times the bytes. Neither has
            a use of ``jax.lax.ragged_dot``, see ``ragged`` and ``moe``.
    """

    attention: Attend = attend
    platform: str = "tpu"

    @property
    def unroll(self) -> bool:
        return self.platform != "tpu"

    @property
    def every_expert(self) -> bool:
        return self.platform == "gpu"

    def packed_shape(self, num_in: int, num_out: int) -> tuple[int, ...]:
        return num_in, num_out

    def pack(self, weight: Any) -> Any:
        return weight

    def linear(self, x: jax.Array, weight: jax.Array, num_out: int) -> jax.Array:
        return jnp.einsum("ti,io->to", x, weight)

    def ragged(self, x: jax.Array, weight: jax.Array, num_rows: jax.Array) -> jax.Array:
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
        rows: AttentionMetadata,
        pool: KVPool,
        kind: AttentionKind,
    ) -> tuple[jax.Array, KVPool]:
        return self.attention(layer, q, k, v, rows, pool, kind)


XLA = XlaOps()
XLA_ON_CPU = XlaOps(platform="cpu")
XLA_ON_GPU = XlaOps(platform="gpu")
