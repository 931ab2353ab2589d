"""The device tier: one paged array holding every layer's K and V.

Its physical layout is this file's secret. Everyone else sees K and V as
``[..., page_size, num_kv_heads, head_dim]`` and names pages by their slot, 0 <= slot < num_pages.
Slot 0 is the null page: page tables are padded with it, nothing is ever written to it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

NULL_PAGE = 0


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """Sizes of a pool. Bytes are those of the whole pool, all layers, K and V."""

    num_layers: int
    num_pages: int
    page_size: int
    num_kv_heads: int
    head_dim: int
    dtype: str = "float32"

    @property
    def page_bytes(self) -> int:
        """Bytes of one page: page_size tokens of K and V for all layers."""
        per_token = 2 * self.num_kv_heads * self.head_dim * np.dtype(jnp.dtype(self.dtype)).itemsize
        return self.num_layers * self.page_size * per_token

    @property
    def nbytes(self) -> int:
        return self.num_pages * self.page_bytes

    @property
    def num_kv_slots(self) -> int:
        """Token slots of one layer; a write to a slot at or past this is dropped."""
        return self.num_pages * self.page_size


@partial(jax.tree_util.register_dataclass, data_fields=["data"], meta_fields=["spec"])
@dataclass(frozen=True)
class KVPool:
    """Paged KV of all layers. Donate it to the step and take it back from the step.

    ``data`` is one leaf, so that donation updates it in place whatever the number of layers. In a
    scan over layers carry the pool: as xs or ys it would be copied. Heads stand as K0, V0, K1, V1:
    so JAX's kernel for TPUs reads them, and a cut along them leaves each device whole pairs.
    """

    data: jax.Array  # [num_layers * num_pages, page_size, 2 * num_kv_heads, head_dim]
    spec: PoolSpec

    @classmethod
    def zeros(cls, spec: PoolSpec) -> KVPool:
        shape = (
            spec.num_layers * spec.num_pages,
            spec.page_size,
            2 * spec.num_kv_heads,
            spec.head_dim,
        )
        return cls(jnp.zeros(shape, jnp.dtype(spec.dtype)), spec)

    def write(
        self,
        layer: jax.Array,  # i32[]
        slots: jax.Array,  # i32[num_tokens], page * page_size + offset; >= num_kv_slots is dropped
        k: jax.Array,  # [num_tokens, num_kv_heads, head_dim]
        v: jax.Array,  # [num_tokens, num_kv_heads, head_dim]
    ) -> KVPool:
        """Store the K and V of new tokens of one layer."""
        spec = self.spec
        page, offset = slots // spec.page_size, slots % spec.page_size
        # A padded token must leave the whole array, not land in the next layer's pages.
        row = jnp.where(page < spec.num_pages, layer * spec.num_pages + page, self.data.shape[0])
        kv = jnp.stack([k, v], axis=2).reshape(-1, *self.data.shape[2:])  # [T, 2K, H]
        kv = kv.astype(self.data.dtype)
        return KVPool(self.data.at[row, offset].set(kv, mode="drop"), spec)

    def read(
        self,
        layer: jax.Array,  # i32[]
        pages: jax.Array,  # i32[...]
    ) -> tuple[jax.Array, jax.Array]:
        """K and V of whole pages of one layer, each [..., page_size, num_kv_heads, head_dim]."""
        kv = self.data.at[layer * self.spec.num_pages + pages].get(mode="promise_in_bounds")
        return kv[..., 0::2, :], kv[..., 1::2, :]

    def gather(self, slots: jax.Array) -> jax.Array:
        """Whole blocks, [num_layers, n, page_size, 2 * num_kv_heads, head_dim], of i32[n] slots."""
        return self.data.at[self._rows(slots)].get(mode="promise_in_bounds")

    def scatter(self, slots: jax.Array, blocks: jax.Array) -> KVPool:
        """Store what ``gather`` gave at i32[n] slots; one at or past ``num_pages`` is dropped."""
        rows = jnp.where(slots < self.spec.num_pages, self._rows(slots), self.data.shape[0])
        return KVPool(self.data.at[rows].set(blocks, mode="drop"), self.spec)

    def _rows(self, slots: jax.Array) -> jax.Array:  # i32[n] -> i32[num_layers, n]
        layers = jnp.arange(self.spec.num_layers, dtype=jnp.int32)
        return layers[:, None] * self.spec.num_pages + slots
