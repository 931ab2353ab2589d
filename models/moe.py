"""A mixture of experts in place of an MLP (Qwen3-MoE)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from kvflow_jax.models.config import MoeConfig
from kvflow_jax.models.layers import ACTIVATIONS, Linear, random_normal
from kvflow_jax.models.ops import Ops


class Experts(nnx.Module):
    """One matrix an expert; each expert takes its own run of rows."""

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
        num_rows: jax.Array,  # i32[E], of each expert
    ) -> jax.Array:  # [rows, out]
        return self.ops.ragged(x, self.weight[...], num_rows)


class ExpertsMLP(nnx.Module):
    """The weighted sum of what a token's best experts give, each down(act(gate(x)) * up(x)).

    A token's experts are those with the largest shares of a softmax over all. Tokens are sorted by
    expert, so that every chosen expert is one product and no token is dropped.
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

    def __call__(self, x: jax.Array) -> jax.Array:  # [T, D]
        num_chosen = self.config.num_chosen
        shares = jax.nn.softmax(self.router(x).astype(jnp.float32), axis=-1)  # [T, E]
        shares, experts = jax.lax.top_k(shares, num_chosen)  # [T, chosen] each
        if self.config.normalise:
            shares = shares / shares.sum(-1, keepdims=True)
        order = jnp.argsort(experts.reshape(-1))  # of T * chosen visits, by expert
        num_rows = jnp.bincount(experts.reshape(-1), length=self.config.num_experts)
        num_rows = num_rows.astype(jnp.int32)
        gate_up = self.gate_up_proj(x[order // num_chosen], num_rows)
        gate, up = jnp.split(gate_up, 2, axis=-1)  # [T * chosen, F] each
        out = self.down_proj(ACTIVATIONS[self.activation](gate) * up, num_rows)
        out = jnp.zeros_like(out).at[order].set(out).reshape(x.shape[0], num_chosen, -1)
        return self.ops.join(jnp.einsum("tcd,tc->td", out, shares.astype(out.dtype)))
