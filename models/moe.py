"""A mixture of experts in place of an MLP (Qwen3-MoE)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from kvflow_jax.models.config import MoeConfig
from kvflow_jax.models.layers import ACTIVATIONS, Linear, random_normal
from kvflow_jax.models.ops import Ops

TOKENS_AT_ONCE = 256  # through all experts: enough to be busy, and no more memory than these need


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
    expert, so that every chosen expert is one product and no token is dropped; or go through all
    experts, where ``ops`` say so.
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
        path = self._through_all if self.ops.every_expert else self._through_own
        return self.ops.all_reduce(path(x, shares.astype(x.dtype), experts))

    def _through_own(
        self,
        x: jax.Array,  # [T, D]
        shares: jax.Array,  # [T, chosen]
        experts: jax.Array,  # i32[T, chosen]
    ) -> jax.Array:  # [T, D]
        num_chosen = self.config.num_chosen
        order = jnp.argsort(experts.reshape(-1))  # of T * chosen visits, by expert
        num_rows = jnp.bincount(experts.reshape(-1), length=self.config.num_experts)
        num_rows = num_rows.astype(jnp.int32)
        gate_up = self.gate_up_proj(x[order // num_chosen], num_rows)
        gate, up = jnp.split(gate_up, 2, axis=-1)  # [T * chosen, F] each
        out = self.down_proj(ACTIVATIONS[self.activation](gate) * up, num_rows)
        out = jnp.zeros_like(out).at[order].set(out).reshape(x.shape[0], num_chosen, -1)
        return jnp.einsum("tcd,tc->td", out, shares)

    def _through_all(self, x: jax.Array, shares: jax.Array, experts: jax.Array) -> jax.Array:
        """As ``_through_own``, by products of all: where no product of ragged runs is any good.

        Every expert's weights are read once, as a batch that decodes does nearly anyway; a prompt
        pays with products that nobody asked for, num_experts / num_chosen times as many.
        """
        num_tokens, num = x.shape[0], self.config.num_experts
        share = jnp.zeros((num, num_tokens), x.dtype)
        share = share.at[experts, jnp.arange(num_tokens)[:, None]].set(shares)
        outs = []
        for start in range(0, num_tokens, TOKENS_AT_ONCE):
            some = slice(start, start + TOKENS_AT_ONCE)
            # A product for each expert: written as one product, XLA lays all weights out anew.
            own = jnp.broadcast_to(x[some], (num, *x[some].shape))
            gate_up = jnp.einsum("etd,edf->etf", own, self.gate_up_proj.weight[...])
            gate, up = jnp.split(gate_up, 2, axis=-1)
            shares_here = share[:, some, None]
            hidden = ACTIVATIONS[self.activation](gate) * up * shares_here
            # Of an expert that was not chosen it may be infinite, and 0 times that is no number.
            hidden = jnp.where(shares_here > 0, hidden, 0)
            outs.append(jnp.einsum("etf,efd->td", hidden, self.down_proj.weight[...]))
        return jnp.concatenate(outs)
