"""A mixture of experts in place of an MLP (Qwen3-MoE)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from kvflow_jax.models.activations import gate
from kvflow_jax.models.config import MoeConfig
from kvflow_jax.models.layers import Linear, random_normal
from kvflow_jax.models.ops import Ops

# Tokens per pass through all experts: enough to keep a device busy, with bounded memory.
DENSE_CHUNK_LEN = 256


class Experts(nnx.Module):
    """One weight matrix per expert; each expert multiplies a contiguous run of rows."""

    def __init__(
        self,
        num_experts: int,
        in_features: int,
        out_features: int,
        *,
        ops: Ops,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.ops = ops
        shape = (num_experts, in_features, out_features)
        self.weight = nnx.Param(random_normal(rngs, shape, dtype))

    def __call__(
        self,
        x: jax.Array,  # [rows, in], sorted by expert
        num_rows: jax.Array,  # i32[E], rows of each expert
    ) -> jax.Array:  # [rows, out]
        return self.ops.ragged_dot(x, self.weight[...], num_rows)


class ExpertsMLP(nnx.Module):
    """The weighted sum of the outputs of a token's top-k experts, each down(act(gate(x)) * up(x)).

    The router's softmax over all experts ranks and weights them. Tokens are sorted by expert, so
    that each chosen expert is one matrix product and no token is dropped. If ``ops.dense_experts``
    is set, every token goes through every expert instead.
    """

    def __init__(
        self,
        hidden_size: int,
        config: MoeConfig,
        *,
        activation: str,
        ops: Ops,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.activation, self.ops = config, activation, ops
        num, d, f = config.num_experts, hidden_size, config.intermediate_size
        self.router = Linear(d, num, bias=False, ops=ops, dtype=dtype, rngs=rngs)
        self.gate_up_proj = Experts(num, d, 2 * f, ops=ops, dtype=dtype, rngs=rngs)
        self.down_proj = Experts(num, f, d, ops=ops, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, residual: jax.Array | None = None) -> jax.Array:  # [T, D]
        probs = jax.nn.softmax(self.router(x).astype(jnp.float32), axis=-1)  # [T, E]
        weights, experts = jax.lax.top_k(probs, self.config.num_experts_per_token)  # [T, C] each
        if self.config.normalise_weights:
            weights = weights / weights.sum(-1, keepdims=True)
        run_experts = self._run_dense if self.ops.dense_experts else self._run_chosen
        out = self.ops.all_reduce(run_experts(x, weights.astype(x.dtype), experts))
        return out if residual is None else residual + out

    def _run_chosen(
        self,
        x: jax.Array,  # [T, D]
        weights: jax.Array,  # [T, C], of the C experts chosen for each token
        experts: jax.Array,  # i32[T, C]
    ) -> jax.Array:  # [T, D]
        num_chosen = self.config.num_experts_per_token
        order = jnp.argsort(experts.reshape(-1))  # of the T * C (token, expert) pairs, by expert
        num_rows = jnp.bincount(experts.reshape(-1), length=self.config.num_experts)
        num_rows = num_rows.astype(jnp.int32)
        gate_up = self.gate_up_proj(x[order // num_chosen], num_rows)
        out = self.down_proj(gate(gate_up, self.activation), num_rows)  # of [T * C, F]
        out = jnp.zeros_like(out).at[order].set(out).reshape(x.shape[0], num_chosen, -1)
        return jnp.einsum("tcd,tc->td", out, weights)

    def _run_dense(self, x: jax.Array, weights: jax.Array, experts: jax.Array) -> jax.Array:
        """Do as ``_run_chosen`` with dense products, for devices without a fast ragged product.

        Each expert's weights are read once, as in nearly every decode batch anyway. A prompt pays
        with num_experts / num_experts_per_token times the products it needs.
        """
        num_tokens, num_experts = x.shape[0], self.config.num_experts
        by_expert = jnp.zeros((num_experts, num_tokens), x.dtype)
        by_expert = by_expert.at[experts, jnp.arange(num_tokens)[:, None]].set(weights)
        outs = []
        for start in range(0, num_tokens, DENSE_CHUNK_LEN):
            chunk = slice(start, start + DENSE_CHUNK_LEN)
            # One product per expert: written as one product, XLA relayouts all weights.
            tokens = jnp.broadcast_to(x[chunk], (num_experts, *x[chunk].shape))
            gate_up = jnp.einsum("etd,edf->etf", tokens, self.gate_up_proj.weight[...])
            chunk_weights = by_expert[:, chunk, None]
            hidden = gate(gate_up, self.activation) * chunk_weights
            # An expert that was not chosen may give infinity, and 0 times infinity is NaN.
            hidden = jnp.where(chunk_weights > 0, hidden, 0)
            outs.append(jnp.einsum("etf,efd->td", hidden, self.down_proj.weight[...]))
        return jnp.concatenate(outs)
