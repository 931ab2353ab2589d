"""The Llama family: Llama 2 and 3.x, SmolLM2 and all that share its architecture."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from kvflow_jax.cache.pool import KVPool
from kvflow_jax.models.attention import Rows, attend
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.layers import Embedding, Linear, RMSNorm, Stack, SwiGLU, rope_angles, rotate


class LlamaAttention(nnx.Module):
    """Grouped-query attention over the paged pool, query, key and value as one projection."""

    def __init__(
        self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs, stack: Stack
    ) -> None:
        self.config = config
        heads_size = config.num_heads * config.head_dim
        bias = config.attention_bias
        self.qkv_proj = Linear(
            config.hidden_size, config.qkv_size, bias=bias, dtype=dtype, rngs=rngs, stack=stack
        )
        self.o_proj = Linear(
            heads_size, config.hidden_size, bias=bias, dtype=dtype, rngs=rngs, stack=stack
        )

    def __call__(
        self,
        x: jax.Array,  # [T, D]
        angles: tuple[jax.Array, jax.Array],
        layer: jax.Array,  # i32[]
        rows: Rows,
        pool: KVPool,
    ) -> tuple[jax.Array, KVPool]:
        n, k_end = self.config.num_heads, self.config.num_heads + self.config.num_kv_heads
        qkv = self.qkv_proj(x).reshape(x.shape[0], -1, self.config.head_dim)  # [T, N + 2K, H]
        q = rotate(qkv[:, :n], angles)  # [T, N, H]
        k = rotate(qkv[:, n:k_end], angles)  # [T, K, H]
        v = qkv[:, k_end:]  # [T, K, H]
        out, pool = attend(layer, q, k, v, rows, pool)  # [T, N, H]
        return self.o_proj(out.reshape(x.shape[0], -1)), pool  # [T, D]


class LlamaLayer(nnx.Module):
    """One decoder layer, or all of them: weights carry the leading axes ``stack``."""

    def __init__(
        self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs, stack: Stack
    ) -> None:
        d, eps = config.hidden_size, config.rms_norm_eps
        self.input_norm = RMSNorm(d, eps=eps, dtype=dtype, stack=stack)
        self.attention = LlamaAttention(config, dtype=dtype, rngs=rngs, stack=stack)
        self.post_attention_norm = RMSNorm(d, eps=eps, dtype=dtype, stack=stack)
        self.mlp = SwiGLU(
            d, config.intermediate_size, bias=config.mlp_bias, dtype=dtype, rngs=rngs, stack=stack
        )

    def __call__(
        self,
        hidden: jax.Array,  # [T, D]
        angles: tuple[jax.Array, jax.Array],
        layer: jax.Array,  # i32[]
        rows: Rows,
        pool: KVPool,
    ) -> tuple[jax.Array, KVPool]:
        out, pool = self.attention(self.input_norm(hidden), angles, layer, rows, pool)
        hidden = hidden + out
        return hidden + self.mlp(self.post_attention_norm(hidden)), pool


class Llama(nnx.Module):
    """Tokens to hidden states and logits; K and V of every token go through the pool.

    ``unroll`` gives every layer its own weights and program: more to compile, but nothing copied.
    A scan over stacked weights compiles one layer; XLA's CPU backend copies each layer's slice.
    """

    def __init__(
        self, config: ModelConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs, unroll: bool
    ) -> None:
        self.config = config
        self.embed = Embedding(config.vocab_size, config.hidden_size, dtype=dtype, rngs=rngs)
        layer = partial(LlamaLayer, config, dtype=dtype, rngs=rngs)
        self.layers = (
            nnx.List([layer(stack=()) for _ in range(config.num_layers)])
            if unroll
            else layer(stack=(config.num_layers,))
        )
        self.final_norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps, dtype=dtype)
        self.lm_head = (
            None
            if config.tie_embeddings
            else Embedding(config.vocab_size, config.hidden_size, dtype=dtype, rngs=rngs)
        )

    def __call__(
        self,
        tokens: jax.Array,  # i32[num_tokens], in row order
        positions: jax.Array,  # i32[num_tokens]
        rows: Rows,
        pool: KVPool,
    ) -> tuple[jax.Array, KVPool]:
        """Hidden states after the last norm, [num_tokens, hidden_size], and the pool."""
        angles = rope_angles(self.config.rope, self.config.head_dim, positions)
        hidden = self.embed(tokens)  # [T, D]
        if isinstance(self.layers, nnx.List):
            for i, layer in enumerate(self.layers):
                hidden, pool = layer(hidden, angles, jnp.int32(i), rows, pool)
            return self.final_norm(hidden), pool

        graphdef, stacked = nnx.split(self.layers)

        def run_layer(
            carry: tuple[jax.Array, KVPool], xs: tuple[jax.Array, nnx.State]
        ) -> tuple[tuple[jax.Array, KVPool], None]:
            index, weights = xs
            return nnx.merge(graphdef, weights)(carry[0], angles, index, rows, carry[1]), None

        # The pool is carried: as xs or ys the scan would copy it.
        indices = jnp.arange(self.config.num_layers, dtype=jnp.int32)
        (hidden, pool), _ = jax.lax.scan(run_layer, (hidden, pool), (indices, stacked))
        return self.final_norm(hidden), pool

    def logits(self, hidden: jax.Array) -> jax.Array:  # [n, D] -> f32[n, V]
        return (self.lm_head or self.embed).logits(hidden)
