"""Weights in 8 bits that XLA reads as they are: integers with per-channel scales.

The integers are converted inside the product, where the compilers of TPUs and of GPUs from Ampere
on fuse it, so that 8 bits a weight are read from memory. The sums are scaled afterwards.
Activations keep their dtype (weight-only quantisation, w8a16).

Scales are for whole columns, so that one product suffices. Those of groups of rows, as the CPU
kernels have, would need a product a group or a matrix that is expanded before its product.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MOST = 127
CPU_BLOCK = 256  # columns, or rows of a table, that a CPU converts at a time


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8Array:
    """Floats that are kept as ``qvalue * scale``, with the names and shapes of qwix's ``QArray``.

    Attributes:
        qvalue: i8[..., m, n], -127 to 127.
        scale: [..., 1, n] or [..., m, 1], in the dtype that the floats had; NaN where one of the
            floats was not finite.
    """

    qvalue: Any
    scale: Any

    @classmethod
    def quantise(cls, weight: Any, axis: int) -> Int8Array:
        """Round floats to the nearest of 255 values, with a scale for each slice along an axis.

        Args:
            weight: [..., m, n].
            axis: that each scale spans: -2 for scales of columns, -1 for those of rows.
        """
        return cls(*_quantise(weight, axis))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the floats."""
        shape: tuple[int, ...] = self.qvalue.shape
        return shape

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        """Of the floats."""
        dtype: np.dtype = self.scale.dtype
        return dtype

    def rows(self, indices: jax.Array) -> jax.Array:  # i32[T] -> f32[T, n]
        """Return rows of floats; indices past the end give the last row."""
        qvalue, scale = (
            part.at[indices].get(mode="clip").astype(jnp.float32)
            for part in (self.qvalue, self.scale)
        )
        found: jax.Array = qvalue * scale
        return found


Weight = jax.Array | Int8Array


@partial(jax.jit, static_argnums=1)
def _quantise(weight: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Return the values and scales of floats."""
    floats = weight.astype(jnp.float32)
    is_finite = jnp.isfinite(floats).all(axis=axis, keepdims=True)
    floats = jnp.where(is_finite, floats, 0)
    # Values are rounded against the scale as it is kept, so that its rounding costs nothing.
    scale = (jnp.abs(floats).max(axis=axis, keepdims=True) / MOST).astype(weight.dtype)
    divisor = scale.astype(jnp.float32)
    qvalue = jnp.rint(floats / jnp.where(divisor > 0, divisor, 1)).clip(-MOST, MOST)
    return qvalue.astype(jnp.int8), jnp.where(is_finite, scale, jnp.nan)


def multiply(x: jax.Array, weight: Int8Array, platform: str) -> jax.Array:
    """Compute x W, [T, m] to f32[T, n]; scales are of columns."""
    sums = _product("ti,io->to", x, weight.qvalue, 1, platform)
    scaled: jax.Array = sums * weight.scale.astype(jnp.float32)
    return scaled


def multiply_transposed(x: jax.Array, weight: Int8Array, platform: str) -> jax.Array:
    """Compute x W^T, [T, n] to f32[T, m]; scales are of rows."""
    sums = _product("td,vd->tv", x, weight.qvalue, 0, platform)
    scaled: jax.Array = sums * weight.scale[:, 0].astype(jnp.float32)
    return scaled


def _product(
    equation: str, x: jax.Array, qvalue: jax.Array, out_axis: int, platform: str
) -> jax.Array:
    """Multiply with integers, converted to the dtype of x; ``out_axis`` is that of the outputs."""

    def multiply_block(block: jax.Array) -> jax.Array:
        return jnp.einsum(equation, x, block.astype(x.dtype), preferred_element_type=jnp.float32)

    size = qvalue.shape[out_axis]
    if platform != "cpu" or size <= CPU_BLOCK:
        return multiply_block(qvalue)

    # XLA's CPU compiler converts whole matrices, those of all unrolled layers at once. Blocks in a
    # loop stay in the processor's cache: 3 to 9 times as fast for few rows.
    def add_block(i: jax.Array, out: jax.Array) -> jax.Array:
        # The last block may compute columns of the one before it again.
        start = jnp.minimum(i * CPU_BLOCK, size - CPU_BLOCK)
        block = jax.lax.dynamic_slice_in_dim(qvalue, start, CPU_BLOCK, out_axis)
        return jax.lax.dynamic_update_slice_in_dim(out, multiply_block(block), start, 1)

    out = jnp.zeros((x.shape[0], size), jnp.float32)
    done: jax.Array = jax.lax.fori_loop(0, -(-size // CPU_BLOCK), add_block, out)
    return done
