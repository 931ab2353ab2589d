"""The Llama family: Llama 2 and 3.x, SmolLM2 and all that share its architecture."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from kvflow_jax.cache.pool import KVPool
from kvflow_jax.models.attention import Rows
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.layers import Embedding, Linear, RMSNorm, SwiGLU, rope_angles, rotate
from kvflow_jax.models.ops import Ops

Angles = tuple[jax.Array, jax.Array]  # of RoPE, see ``rope_angles``


class LlamaAttention(nnx.Module):
    """Grouped-query attention over the paged pool, query, key and value as one projection."""

    def __init__(self, config: ModelConfig, *, ops: Ops, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.config, self.ops = config, ops
        d, heads_size = config.hidden_size, config.num_heads * config.head_dim
        make = partial(Linear, bias=config.attention_bias, ops=ops, dtype=dtype, rngs=rngs)
        self.qkv_proj = make(d, config.qkv_size)
        self.o_proj = make(heads_size, d, joins=True)

    def __call__(
        self,
        x: jax.Array,  # [T, D]
        angles: Angles,
        layer: jax.Array,  # i32[]
        rows: Rows,
        pool: KVPool,
    ) -> tuple[jax.Array, KVPool]:
        n, k_end = self.config.num_heads, self.config.num_heads + self.config.num_kv_heads
        qkv = self.qkv_proj(x).reshape(x.shape[0], -1, self.config.head_dim)  # [T, N + 2K, H]
        q = rotate(qkv[:, :n], angles)  # [T, N, H]
        k = rotate(qkv[:, n:k_end], angles)  # [T, K, H]
        v = qkv[:, k_end:]  # [T, K, H]
        kind = self.config.attention_kind
        out, pool = self.ops.attend(layer, q, k, v, rows, pool, kind)  # [T, N, H]
        return self.o_proj(out.reshape(x.shape[0], -1)), pool  # [T, D]


class LlamaLayer(nnx.Module):
    """One decoder layer."""

    def __init__(self, config: ModelConfig, *, ops: Ops, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        d, eps = config.hidden_size, config.rms_norm_eps
        self.input_norm = RMSNorm(d, eps=eps, dtype=dtype)
        self.attention = LlamaAttention(config, ops=ops, dtype=dtype, rngs=rngs)
        self.post_attention_norm = RMSNorm(d, eps=eps, dtype=dtype)
        self.mlp = SwiGLU(
            d, config.intermediate_size, bias=config.mlp_bias, ops=ops, dtype=dtype, rngs=rngs
        )

    def __call__(
        self,
        hidden: jax.Array,  # [T, D]
        angles: Angles,
        layer: jax.Array,  # i32[]
        rows: Rows,
        pool: KVPool,
    ) -> tuple[jax.Array, KVPool]:
        out, pool = self.attention(self.input_norm(hidden), angles, layer, rows, pool)
        hidden = hidden + out
        return hidden + self.mlp(self.post_attention_norm(hidden)), pool


class LlamaEnds(nnx.Module):
    """What stands before and after the layers."""

    def __init__(self, config: ModelConfig, *, ops: Ops, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.config = config
        vocab, d = config.vocab_size, config.hidden_size
        make = partial(Embedding, vocab, d, ops=ops, dtype=dtype, rngs=rngs)
        self.embed = make()
        self.final_norm = RMSNorm(d, eps=config.rms_norm_eps, dtype=dtype)
        self.lm_head = None if config.tie_embeddings else make()

    def begin(
        self,
        tokens: jax.Array,  # i32[T]
        positions: jax.Array,  # i32[T]
    ) -> tuple[jax.Array, Angles]:
        """Embeddings, [T, D], and the angles that all layers rotate by."""
        return self.embed(tokens), rope_angles(self.config.rope, self.config.head_dim, positions)

    def logits(self, hidden: jax.Array) -> jax.Array:  # [n, D] -> f32[n, V]
        return (self.lm_head or self.embed).logits(self.final_norm(hidden))
