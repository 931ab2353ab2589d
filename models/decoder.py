"""The decoder-only transformer of all families; they differ only in their ``ModelConfig``."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from kvflow_jax.cache.pool import KVPool
from kvflow_jax.models.attention import AttentionMetadata
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.layers import (
    Embedding,
    GatedMLP,
    HeadsNorm,
    Linear,
    RMSNorm,
    normalise,
)
from kvflow_jax.models.moe import ExpertsMLP
from kvflow_jax.models.ops import Ops
from kvflow_jax.models.rope import Angles, rope_angles


class Attention(nnx.Module):
    """Grouped-query attention over the paged pool, with a fused query, key and value projection."""

    def __init__(self, config: ModelConfig, *, ops: Ops, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.config, self.ops = config, ops
        d, heads_size = config.hidden_size, config.num_heads * config.head_dim
        make = partial(Linear, ops=ops, dtype=dtype, rngs=rngs)
        self.qkv_proj = make(d, config.qkv_size, bias=config.qkv_bias)
        self.o_proj = make(heads_size, d, bias=config.out_bias, row_parallel=True)
        head_norm = partial(RMSNorm, config.head_dim, eps=config.rms_norm_eps, ops=ops, dtype=dtype)
        self.q_norm = head_norm() if config.qk_norm == "head" else None
        self.k_norm = head_norm() if config.qk_norm == "head" else None
        norm = partial(
            HeadsNorm, head_dim=config.head_dim, eps=config.rms_norm_eps, ops=ops, dtype=dtype
        )
        is_whole = config.qk_norm == "projection"
        self.q_proj_norm = norm(config.num_heads) if is_whole else None
        self.k_proj_norm = norm(config.num_kv_heads) if is_whole else None

    def __call__(
        self,
        x: jax.Array,  # [T, D]
        angles: Angles,
        layer: jax.Array,  # i32[]
        metadata: AttentionMetadata,
        pool: KVPool,
        residual: jax.Array | None,  # [T, D], added to the output
    ) -> tuple[jax.Array, KVPool]:
        n, k_end = self.config.num_heads, self.config.num_heads + self.config.num_kv_heads
        qkv = self.qkv_proj(x).reshape(x.shape[0], -1, self.config.head_dim)  # [T, N + 2K, H]
        if self.config.qk_norm:
            q, k, v = qkv[:, :n], qkv[:, n:k_end], qkv[:, k_end:]  # [T, N, H], [T, K, H] twice
            q = normalise(self.q_norm or self.q_proj_norm, q)
            k = normalise(self.k_norm or self.k_proj_norm, k)
            qkv = jnp.concatenate([q, k, v], axis=1)
        config = self.config.attention_config
        rope: int | jax.Array = 0
        if self.config.local_rope is not None:
            rope = jnp.asarray([int(window > 0) for window in config.windows])[layer]
        cos, sin = (values[rope] for values in angles)
        out, pool = self.ops.rotate_and_attend(layer, qkv, (cos, sin), metadata, pool, config)
        return self.o_proj(out.reshape(x.shape[0], -1), residual), pool  # [T, D]


class DecoderLayer(nnx.Module):
    """One layer: attention and an MLP or experts, each normalised before, after, or both."""

    def __init__(self, config: ModelConfig, *, ops: Ops, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        norm = partial(RMSNorm, config.hidden_size, eps=config.rms_norm_eps, ops=ops, dtype=dtype)
        self.attention_norm = norm() if config.in_norms else None
        self.mlp_norm = norm() if config.in_norms else None
        self.attention_out_norm = norm() if config.out_norms else None
        self.mlp_out_norm = norm() if config.out_norms else None
        self.attention = Attention(config, ops=ops, dtype=dtype, rngs=rngs)
        self.mlp: GatedMLP | ExpertsMLP
        if config.moe is None:
            self.mlp = GatedMLP(
                config.hidden_size,
                config.intermediate_size,
                activation=config.activation,
                bias=config.mlp_bias,
                ops=ops,
                dtype=dtype,
                rngs=rngs,
            )
        else:
            self.mlp = ExpertsMLP(
                config.hidden_size,
                config.moe,
                activation=config.activation,
                ops=ops,
                dtype=dtype,
                rngs=rngs,
            )

    def __call__(
        self,
        hidden: jax.Array,  # [T, D]
        angles: Angles,
        layer: jax.Array,  # i32[]
        metadata: AttentionMetadata,
        pool: KVPool,
    ) -> tuple[jax.Array, KVPool]:
        x = normalise(self.attention_norm, hidden)
        if self.attention_out_norm is None:
            hidden, pool = self.attention(x, angles, layer, metadata, pool, hidden)
            return self.mlp(normalise(self.mlp_norm, hidden), hidden), pool
        out, pool = self.attention(x, angles, layer, metadata, pool, None)
        hidden = hidden + self.attention_out_norm(out)
        out = self.mlp(normalise(self.mlp_norm, hidden))
        return hidden + normalise(self.mlp_out_norm, out), pool


class EmbedAndHead(nnx.Module):
    """The token embeddings before the layers, and the final norm and output head after them."""

    def __init__(self, config: ModelConfig, *, ops: Ops, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.config = config
        vocab, d = config.vocab_size, config.hidden_size
        make = partial(Embedding, vocab, d, ops=ops, dtype=dtype, rngs=rngs)
        self.embed = make()
        self.final_norm = RMSNorm(d, eps=config.rms_norm_eps, ops=ops, dtype=dtype)
        self.lm_head = None if config.tie_embeddings else make()

    def embed_tokens(
        self,
        tokens: jax.Array,  # i32[T]
        positions: jax.Array,  # i32[T]
    ) -> tuple[jax.Array, Angles]:
        """Return the embeddings, [T, D], and the RoPE angles of all layers."""
        hidden = self.embed(tokens)
        if self.config.embed_scale != 1.0:
            # Round the factor to the weights' dtype first, as Gemma's training does.
            hidden = hidden * jnp.asarray(self.config.embed_scale, hidden.dtype)
        return hidden, rope_angles(self.config.ropes, self.config.head_dim, positions)

    def logits(self, hidden: jax.Array) -> jax.Array:  # [n, D] -> f32[n, V]
        """Return the logits of hidden states that the last layer returned."""
        return (self.lm_head or self.embed).logits(self.final_norm(hidden))
