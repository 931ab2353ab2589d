"""Building blocks of the models: linear, embedding, norm and MLP."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from kvflow_jax.models.activations import gate
from kvflow_jax.models.ops import Ops


class Linear(nnx.Module):
    """y = x W + b, with W in the packed form of ``ops``.

    Args:
        row_parallel: whether tensor parallelism shards W by rows (its inputs) and sums the partial
            products with an all-reduce.
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
        row_parallel: bool = False,
    ) -> None:
        self.ops, self.out_features, self.row_parallel = ops, out_features, row_parallel
        self.weight = nnx.Param(ops.pack(random_normal(rngs, (in_features, out_features), dtype)))
        self.bias = nnx.Param(jnp.zeros(out_features, dtype)) if bias else None

    def __call__(self, x: jax.Array, residual: jax.Array | None = None) -> jax.Array:
        """Map [T, in] to [T, out], and add a residual [T, out] if it is given."""
        if residual is not None and self.row_parallel and self.bias is None:
            return self.ops.linear_add(x, self.weight.get_value(), self.out_features, residual)
        y = self._project(x)
        return y if residual is None else residual + y

    def _project(self, x: jax.Array) -> jax.Array:
        y = self.ops.linear(x, self.weight.get_value(), self.out_features)
        y = self.ops.all_reduce(y) if self.row_parallel else y
        return y if self.bias is None else y + self.bias[...]

    def gated(self, x: jax.Array, activation: str) -> jax.Array:  # [T, in] -> [T, out / 2]
        """Return act(gate) * up, for the gate and up projections fused in W."""
        if self.bias is not None:
            return gate(self(x), activation)
        return self.ops.gated(x, self.weight.get_value(), self.out_features // 2, activation)


class Embedding(nnx.Module):
    """Token embeddings; also the output projection if embeddings are tied."""

    def __init__(
        self, vocab_size: int, hidden_size: int, *, ops: Ops, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        self.ops, self.vocab_size, self.hidden_size = ops, vocab_size, hidden_size
        table = random_normal(rngs, (vocab_size, hidden_size), dtype)
        self.weight = nnx.Param(ops.pack_table(table))

    def __call__(self, tokens: jax.Array) -> jax.Array:  # i32[T] -> [T, D]
        return self.ops.lookup(self.weight.get_value(), tokens, self.hidden_size)

    def logits(self, hidden: jax.Array) -> jax.Array:  # [n, D] -> f32[n, V]
        return self.ops.project(hidden, self.weight.get_value(), self.vocab_size)


class RMSNorm(nnx.Module):
    """Root mean square norm, computed in float32 for any dtype of the weights."""

    def __init__(self, size: int, *, eps: float, ops: Ops, dtype: jnp.dtype) -> None:
        self.eps, self.ops = eps, ops
        self.weight = nnx.Param(jnp.ones(size, dtype))

    def __call__(self, x: jax.Array) -> jax.Array:  # [..., size]
        return self.ops.rms_norm(x, self.weight[...], self.eps)


class HeadsNorm(nnx.Module):
    """Root mean square norm over all heads together, of which a device may have a shard."""

    def __init__(
        self, num_heads: int, *, head_dim: int, eps: float, ops: Ops, dtype: jnp.dtype
    ) -> None:
        self.eps, self.ops = eps, ops
        self.weight = nnx.Param(jnp.ones(num_heads * head_dim, dtype))

    def __call__(self, x: jax.Array) -> jax.Array:  # [T, N, H]
        x32 = x.astype(jnp.float32)
        total = self.ops.all_reduce(jnp.sum(jnp.square(x32), axis=(-2, -1), keepdims=True))
        size = self.ops.all_reduce(jnp.float32(x.shape[-2] * x.shape[-1]))
        scale = jax.lax.rsqrt(total / size + self.eps)
        return (x32 * scale).astype(x.dtype) * self.weight[...].reshape(x.shape[-2:])


class GatedMLP(nnx.Module):
    """down(act(gate(x)) * up(x)), with a fused gate and up projection."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        *,
        activation: str,
        bias: bool,
        ops: Ops,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.activation = activation
        make = partial(Linear, bias=bias, ops=ops, dtype=dtype, rngs=rngs)
        self.gate_up_proj = make(hidden_size, 2 * intermediate_size)
        self.down_proj = make(intermediate_size, hidden_size, row_parallel=True)

    def __call__(self, x: jax.Array, residual: jax.Array | None = None) -> jax.Array:
        return self.down_proj(self.gate_up_proj.gated(x, self.activation), residual)  # [T, D]


def random_normal(rngs: nnx.Rngs, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Return random weights with standard deviation 0.02."""
    return jax.random.normal(rngs.params(), shape, dtype) * jnp.asarray(0.02, dtype)


def normalise(norm: RMSNorm | HeadsNorm | None, x: jax.Array) -> jax.Array:
    """Apply a norm that a model may not have."""
    return x if norm is None else norm(x)
