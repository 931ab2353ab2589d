"""Configuration of a model: one frozen ``ModelConfig``, read once from the model's files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from kvflow_jax.models.rope import RopeConfig


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """Constants of a model's attention besides shapes; static under ``jax.jit``.

    A sliding window saves work, not memory: a layer with a window fills the pool like any other
    layer, because blocks of KV are moved and evicted for all layers at once.

    Attributes:
        scale: factor of the scores before the softmax.
        windows: for each layer, tokens that a query attends to, itself included; 0: no window.
    """

    scale: float
    windows: tuple[int, ...]

    @property
    def has_windows(self) -> bool:
        return any(self.windows)


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """A mixture of experts in place of every layer's MLP.

    Attributes:
        num_experts_per_token: experts that the router chooses for each token.
        intermediate_size: width of one expert.
        normalise_weights: whether the router weights of a token's experts are scaled to sum to 1.
    """

    num_experts: int
    num_experts_per_token: int
    intermediate_size: int
    normalise_weights: bool


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and constants of a decoder-only transformer. Lengths are in tokens.

    Attributes:
        family: name of a record of ``models.families``, which says how files are read and whether
            float16 suffices. The forward pass does not read it.
        dtype: dtype of the saved weights according to the files; "" if they do not name it.
        qk_norm: what is normalised before RoPE: "head", the query and the key of each head, or
            "projection", those of all heads together (OLMo 2).
        in_norms: whether the inputs of attention and MLP are normalised (all but OLMo 2).
        out_norms: whether the outputs of attention and MLP are normalised before the residual
            addition (Gemma, OLMo 2).
        activation: activation of the MLP's gate, "silu" or "gelu_tanh".
        embed_scale: factor of the embeddings.
        query_scalar: scores are divided by its square root; None: ``head_dim``.
        windows: as in ``AttentionConfig``; empty: no layer has a window.
        local_rope: RoPE of the layers with a window; None: ``rope``.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_embeddings: bool
    max_model_len: int
    dtype: str = ""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: Literal["", "head", "projection"] = ""
    in_norms: bool = True
    out_norms: bool = False
    activation: str = "silu"
    embed_scale: float = 1.0
    query_scalar: float | None = None
    windows: tuple[int, ...] = ()
    local_rope: RopeConfig | None = None
    moe: MoeConfig | None = None
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    @property
    def qkv_size(self) -> int:
        """Width of the fused query, key and value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def attention_config(self) -> AttentionConfig:
        """Constants of attention, with a window for every layer."""
        scalar = self.head_dim if self.query_scalar is None else self.query_scalar
        return AttentionConfig(scalar**-0.5, self.windows or (0,) * self.num_layers)

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """RoPE of layers without a window, and of layers with a window if that differs."""
        return (self.rope,) if self.local_rope is None else (self.rope, self.local_rope)

    @property
    def num_params(self) -> int:
        """Number of weights, tied embeddings counted once."""
        d, heads = self.hidden_size, self.num_heads * self.head_dim
        attention = d * self.qkv_size + self.qkv_bias * self.qkv_size
        attention += heads * d + self.out_bias * d
        if self.qk_norm:
            num_normalised = self.num_heads + self.num_kv_heads
            attention += self.head_dim * (2 if self.qk_norm == "head" else num_normalised)
        if self.moe is None:
            mlp = 3 * d * self.intermediate_size + self.mlp_bias * (2 * self.intermediate_size + d)
        else:
            mlp = self.moe.num_experts * (d + 3 * d * self.moe.intermediate_size)
        norms = 2 * (self.in_norms + self.out_norms) * d
        embeddings = self.vocab_size * d * (1 if self.tie_embeddings else 2)
        return self.num_layers * (attention + mlp + norms) + embeddings + d

    def with_eos(self, token_ids: tuple[int, ...]) -> ModelConfig:
        """Return a copy that also ends a generation at these token ids."""
        known = [i for i in self.eos_token_ids + token_ids if 0 <= i < self.vocab_size]
        return replace(self, eos_token_ids=tuple(dict.fromkeys(known)))

    def for_len(self, max_len: int) -> ModelConfig:
        """Return a copy for sequences of up to ``max_len`` tokens; see ``RopeConfig.for_len``."""
        local = self.local_rope
        return replace(
            self,
            rope=self.rope.for_len(max_len),
            local_rope=None if local is None else local.for_len(max_len),
        )
