"""The parts that models are built of."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kvflow_jax.models.config import RopeConfig
from kvflow_jax.models.ops import Ops


class Linear(nnx.Module):
    """y = x W + b, with W packed as ``ops`` wants it.

    Args:
        joins: whether, over several devices, the inputs are cut between them, not the outputs.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool,
        ops: Ops,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        joins: bool = False,
    ) -> None:
        self.ops, self.out_features, self.joins = ops, out_features, joins
        shape = ops.packed_shape(in_features, out_features)
        self.weight = nnx.Param(_normal(rngs, shape, dtype))
        self.bias = nnx.Param(jnp.zeros(out_features, dtype)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:  # [T, in] -> [T, out]
        y = self.ops.linear(x, self.weight[...], self.out_features)
        y = self.ops.join(y) if self.joins else y
        return y if self.bias is None else y + self.bias[...]


class Embedding(nnx.Module):
    """Rows of a table by token id; also the output projection where embeddings are tied."""

    def __init__(
        self, vocab_size: int, hidden_size: int, *, ops: Ops, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        self.ops, self.vocab_size = ops, vocab_size
        self.weight = nnx.Param(_normal(rngs, ops.table_shape(vocab_size, hidden_size), dtype))

    def __call__(self, tokens: jax.Array) -> jax.Array:  # i32[T] -> [T, D]
        return self.ops.lookup(self.weight[...], tokens)

    def logits(self, hidden: jax.Array) -> jax.Array:  # [n, D] -> f32[n, V]
        return self.ops.project(hidden, self.weight[...], self.vocab_size)


class RMSNorm(nnx.Module):
    """Root mean square norm, computed in float32 whatever the dtype of the weights."""

    def __init__(self, size: int, *, eps: float, dtype: jnp.dtype) -> None:
        self.eps = eps
        self.weight = nnx.Param(jnp.ones(size, dtype))

    def __call__(self, x: jax.Array) -> jax.Array:  # [T, D]
        x32 = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32 * scale).astype(x.dtype) * self.weight[...]


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x)), gate and up as one projection."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        bias: bool,
        ops: Ops,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        make = partial(Linear, bias=bias, ops=ops, dtype=dtype, rngs=rngs)
        self.gate_up_proj = make(hidden_size, 2 * intermediate_size)
        self.down_proj = make(intermediate_size, hidden_size, joins=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = jnp.split(self.gate_up_proj(x), 2, axis=-1)  # [T, F] each
        return self.down_proj(jax.nn.silu(gate) * up)  # [T, D]


def rope_inverse_frequencies(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Radians a token of each pair of dimensions, f32[head_dim / 2], scaled as ``rope`` says.

    Computed in float64, rounded once. The llama3 rule is that of Llama 3.1: long waves are slowed
    by ``factor``, short ones kept, those between interpolated.
    """
    frequencies = rope.theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.kind == "linear":
        frequencies = frequencies / rope.factor
    elif rope.kind == "llama3":
        wavelengths = 2 * math.pi / frequencies
        low, high = rope.low_freq_factor, rope.high_freq_factor
        kept = (rope.original_max_len / wavelengths - low) / (high - low)  # share left unscaled
        kept = np.clip(kept, 0.0, 1.0)
        frequencies = frequencies * (kept + (1 - kept) / rope.factor)
    return frequencies.astype(np.float32)


def rope_angles(
    rope: RopeConfig,
    head_dim: int,
    positions: jax.Array,  # i32[T]
) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of every token, each f32[T, 1, head_dim / 2]; once for all layers."""
    frequencies = jnp.asarray(rope_inverse_frequencies(rope, head_dim))
    angles = positions[:, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: jax.Array,  # [T, N, H]
    angles: tuple[jax.Array, jax.Array],
) -> jax.Array:
    """Apply RoPE: dimension i is paired with i + H/2 (half-split, as in Hugging Face weights)."""
    cos, sin = angles
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    return jax.random.normal(rngs.params(), shape, dtype) * jnp.asarray(0.02, dtype)
