"""What a model is made of: one frozen ``ModelConfig``, read once from its files."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvflow_jax.models.rope import RopeConfig


@dataclass(frozen=True, slots=True)
class AttentionKind:
    """What attention must know of a model besides shapes; static.

    The KV of a layer with a window fills the pool as that of any other layer: blocks are moved and
    evicted whole, whatever their layers still see. A window saves work, not memory.

    Attributes:
        scale: what scores are multiplied with.
        windows: tokens that a query of each layer sees, itself included; 0 is all of them.
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
        num_chosen: experts that a token goes to.
        intermediate_size: of one expert.
        normalise: whether the weights of the chosen experts are made to sum to 1.
    """

    num_experts: int
    num_chosen: int
    intermediate_size: int
    normalise: bool


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes and constants of a decoder-only transformer. Lengths are in tokens.

    Attributes:
        family: names the tensors of its files, see models/hf_tensors.py; all else is in the fields.
        dtype: that its files say its weights were saved in; "" where they say nothing.
        qk_norm: whether each head's query and key are normed before RoPE.
        out_norms: whether what attention and MLP give is normed before it is added (Gemma).
        activation: of the MLP's gate, "silu" or "gelu_tanh".
        embed_scale: what embeddings are multiplied with.
        query_scalar: scores are divided by its square root; None is ``head_dim``.
        windows: as in ``AttentionKind``; empty where every layer sees all.
        local_rope: of the layers that have a window; None is ``rope``.
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
    qk_norm: bool = False
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
    def attention_kind(self) -> AttentionKind:
        scalar = self.head_dim if self.query_scalar is None else self.query_scalar
        return AttentionKind(scalar**-0.5, self.windows or (0,) * self.num_layers)

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """Of layers without and, where it is another, with a window."""
        return (self.rope,) if self.local_rope is None else (self.rope, self.local_rope)

    @property
    def num_params(self) -> int:
        """Number of weights, tied embeddings counted once."""
        d, heads = self.hidden_size, self.num_heads * self.head_dim
        attention = d * self.qkv_size + self.qkv_bias * self.qkv_size
        attention += heads * d + self.out_bias * d + self.qk_norm * 2 * self.head_dim
        if self.moe is None:
            mlp = 3 * d * self.intermediate_size + self.mlp_bias * (2 * self.intermediate_size + d)
        else:
            mlp = self.moe.num_experts * (d + 3 * d * self.moe.intermediate_size)
        norms = (4 if self.out_norms else 2) * d
        embeddings = self.vocab_size * d * (1 if self.tie_embeddings else 2)
        return self.num_layers * (attention + mlp + norms) + embeddings + d

    def with_eos(self, token_ids: tuple[int, ...]) -> ModelConfig:
        """The same model, ending also at these tokens."""
        known = [one for one in self.eos_token_ids + token_ids if 0 <= one < self.vocab_size]
        return replace(self, eos_token_ids=tuple(dict.fromkeys(known)))

    def for_len(self, max_len: int) -> ModelConfig:
        """The same model, serving sequences of up to so many tokens; see ``RopeConfig.for_len``."""
        local = self.local_rope
        return replace(
            self,
            rope=self.rope.for_len(max_len),
            local_rope=None if local is None else local.for_len(max_len),
        )


def token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """A token id field of a Hugging Face json: nothing, one id, or a list of ids."""
    if value is None:
        return ()
    return tuple(int(one) for one in value) if isinstance(value, list | tuple) else (int(value),)
