"""Device pool: one paged array with the K and V of every layer.

The physical layout is private to this file. Other modules see K and V as
``[..., page_size, num_kv_heads, head_dim]`` and refer to pages by number, 0 <= page < num_pages.
Page 0 is the null page: page tables are padded with it, and it is never written.
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
    """Sizes of a pool. Byte counts include K and V of all layers.

    Attributes:
        as_bits: keep 16-bit floats as uint16. XLA's CPU compiler widens a whole array of 16-bit
            floats to read or write a part of it.
    """

    num_layers: int
    num_pages: int
    page_size: int
    num_kv_heads: int
    head_dim: int
    dtype: str = "float32"
    as_bits: bool = False

    @property
    def page_bytes(self) -> int:
        """Bytes of one page: page_size tokens of K and V for all layers."""
        per_token = 2 * self.num_kv_heads * self.head_dim * np.dtype(jnp.dtype(self.dtype)).itemsize
        return self.num_layers * self.page_size * per_token

    @property
    def nbytes(self) -> int:
        """Bytes of the whole pool."""
        return self.num_pages * self.page_bytes

    @property
    def num_kv_slots(self) -> int:
        """KV slots (one per token) of a layer; writes to a slot at or past this are dropped."""
        return self.num_pages * self.page_size


@partial(jax.tree_util.register_dataclass, data_fields=["data"], meta_fields=["spec"])
@dataclass(frozen=True)
class KVPool:
    """Paged KV cache of all layers. Donate it to the step, which returns it.

    ``data`` is one leaf, so that donation updates it in place for any number of layers. In a scan
    over layers, carry the pool: as xs or ys it would be copied. Heads are interleaved (K0, V0, K1,
    V1): JAX's TPU kernel reads this order, and sharding along it keeps each K/V pair on one device.
    """

    data: jax.Array  # [num_layers * num_pages, page_size, 2 * num_kv_heads, head_dim]
    spec: PoolSpec

    @classmethod
    def zeros(cls, spec: PoolSpec) -> KVPool:
        """Return a zeroed pool on the default device."""
        shape = (
            spec.num_layers * spec.num_pages,
            spec.page_size,
            2 * spec.num_kv_heads,
            spec.head_dim,
        )
        return cls(jnp.zeros(shape, jnp.uint16 if spec.as_bits else jnp.dtype(spec.dtype)), spec)

    def write(
        self,
        layer: jax.Array,  # i32[]
        kv_slots: jax.Array,  # i32[num_tokens], page * page_size + offset; >= num_kv_slots: dropped
        k: jax.Array,  # [num_tokens, num_kv_heads, head_dim]
        v: jax.Array,  # [num_tokens, num_kv_heads, head_dim]
    ) -> KVPool:
        """Return the pool with the K and V of new tokens of one layer stored."""
        spec = self.spec
        page, offset = kv_slots // spec.page_size, kv_slots % spec.page_size
        # The row of a padded token must lie past the whole array, not in the next layer's pages.
        row = jnp.where(page < spec.num_pages, layer * spec.num_pages + page, self.data.shape[0])
        kv = jnp.stack([k, v], axis=2).reshape(-1, *self.data.shape[2:])  # [T, 2K, H]
        kv = kv.astype(spec.dtype)
        if spec.as_bits:
            kv = jax.lax.bitcast_convert_type(kv, jnp.uint16)
        return KVPool(self.data.at[row, offset].set(kv, mode="drop"), spec)

    def read(
        self,
        layer: jax.Array,  # i32[]
        pages: jax.Array,  # i32[...]
    ) -> tuple[jax.Array, jax.Array]:
        """Return K and V of pages of a layer, each [..., page_size, num_kv_heads, head_dim]."""
        kv = self.data.at[layer * self.spec.num_pages + pages].get(mode="promise_in_bounds")
        if self.spec.as_bits:
            kv = jax.lax.bitcast_convert_type(kv, jnp.dtype(self.spec.dtype))
        return kv[..., 0::2, :], kv[..., 1::2, :]

    def gather(self, pages: jax.Array) -> jax.Array:
        """Return the blocks on ``pages`` (i32[n]).

        Returns:
            [num_layers, n, page_size, 2 * num_kv_heads, head_dim].
        """
        return self.data.at[self._rows(pages)].get(mode="promise_in_bounds")

    def scatter(self, pages: jax.Array, blocks: jax.Array) -> KVPool:
        """Return the pool with ``blocks``, as returned by ``gather``, stored on ``pages``.

        Args:
            pages: i32[n]; a block whose page is at or past ``num_pages`` is dropped.
        """
        rows = jnp.where(pages < self.spec.num_pages, self._rows(pages), self.data.shape[0])
        return KVPool(self.data.at[rows].set(blocks, mode="drop"), self.spec)

    def _rows(self, pages: jax.Array) -> jax.Array:  # i32[n] -> i32[num_layers, n]
        layers = jnp.arange(self.spec.num_layers, dtype=jnp.int32)
        return layers[:, None] * self.spec.num_pages + pages
