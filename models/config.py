"""What a model is made of: one frozen ``ModelConfig``, read once from its config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kvflow_jax.errors import ModelLoadError

ROPE_KINDS = ("default", "llama3", "linear")

# architecture in config.json -> family, the name under which models/model.py knows its definition
ARCHITECTURES = {"LlamaForCausalLM": "llama"}


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding; the fields after ``kind`` are read only where the kind needs them.

    ``llama3`` is the frequency scaling of Llama 3.1 (transformers' ``rope_type: llama3``).
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_len: int = 8192


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
class ModelConfig:
    """Sizes and constants of a decoder-only transformer. Lengths are in tokens."""

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
    attention_bias: bool = False
    mlp_bias: bool = False
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None

    @property
    def qkv_size(self) -> int:
        """Width of the fused query, key and value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def attention_kind(self) -> AttentionKind:
        return AttentionKind(self.head_dim**-0.5, (0,) * self.num_layers)

    @property
    def num_params(self) -> int:
        """Number of weights, tied embeddings counted once."""
        d, f, heads = self.hidden_size, self.intermediate_size, self.num_heads * self.head_dim
        attention = d * self.qkv_size + heads * d + self.attention_bias * (self.qkv_size + d)
        mlp = 3 * d * f + self.mlp_bias * (2 * f + d)
        embeddings = self.vocab_size * d * (1 if self.tie_embeddings else 2)
        return self.num_layers * (attention + mlp + 2 * d) + embeddings + d

    def with_eos(self, token_ids: tuple[int, ...]) -> ModelConfig:
        """The same model, ending also at these tokens."""
        return replace(self, eos_token_ids=tuple(dict.fromkeys(self.eos_token_ids + token_ids)))

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> ModelConfig:
        """Read a Hugging Face config.json, in the form of transformers 5 or of older releases.

        Raises:
            ModelLoadError: listing everything that is missing or not supported.
        """
        try:
            return cls._from_hf(hf)
        except (TypeError, ValueError, AttributeError) as error:
            raise ModelLoadError(f"config.json has a value of a wrong type: {error}") from error

    @classmethod
    def _from_hf(cls, hf: Mapping[str, Any]) -> ModelConfig:
        problems: list[str] = []
        family = _family(hf, problems)
        required: dict[str, Any] = {
            name: hf.get(name)
            for name in (
                "vocab_size",
                "hidden_size",
                "intermediate_size",
                "num_hidden_layers",
                "num_attention_heads",
                "rms_norm_eps",
                "max_position_embeddings",
            )
        }
        missing = [name for name, value in required.items() if value is None]
        if missing:
            problems.append(f"config.json lacks {', '.join(missing)}")
        low = [
            f"{name} is {value}"
            for name, value in required.items()
            if value is not None and not float(value) > 0
        ]
        if low:
            problems.append(f"sizes must be above 0, but {', '.join(low)}")
            raise ModelLoadError("this config.json cannot be served:\n- " + "\n- ".join(problems))
        if hf.get("quantization_config"):
            problems.append("quantized weights (quantization_config) are not supported")
        activation = hf.get("hidden_act", "silu")
        if activation != "silu":
            problems.append(f"hidden_act {activation!r} is not supported; supported: 'silu'")
        max_len = required["max_position_embeddings"] or 0
        rope = _rope(hf, max_len, problems)
        heads, kv_heads = required["num_attention_heads"], hf.get("num_key_value_heads")
        kv_heads = heads if kv_heads is None else kv_heads
        if heads and kv_heads and heads % kv_heads:
            problems.append(
                f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
            )
        head_dim: Any = hf.get("head_dim")
        if head_dim is None and heads and required["hidden_size"]:
            if required["hidden_size"] % heads:
                problems.append(
                    f"hidden_size {required['hidden_size']} is not a multiple of "
                    f"num_attention_heads {heads}, and config.json has no head_dim"
                )
            head_dim = required["hidden_size"] // heads
        if problems:
            raise ModelLoadError("this config.json cannot be served:\n- " + "\n- ".join(problems))
        return cls(
            family=family,
            vocab_size=int(required["vocab_size"]),
            hidden_size=int(required["hidden_size"]),
            intermediate_size=int(required["intermediate_size"]),
            num_layers=int(required["num_hidden_layers"]),
            num_heads=int(heads),
            num_kv_heads=int(kv_heads),
            head_dim=int(head_dim),
            rms_norm_eps=float(required["rms_norm_eps"]),
            rope=rope,
            tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
            max_model_len=int(max_len),
            attention_bias=bool(hf.get("attention_bias", False)),
            mlp_bias=bool(hf.get("mlp_bias", False)),
            eos_token_ids=token_ids(hf.get("eos_token_id")),
            bos_token_id=next(iter(token_ids(hf.get("bos_token_id"))), None),
        )


def token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """A token id field of a Hugging Face json: nothing, one id, or a list of ids."""
    if value is None:
        return ()
    return tuple(int(one) for one in value) if isinstance(value, list | tuple) else (int(value),)


def _family(hf: Mapping[str, Any], problems: list[str]) -> str:
    for name in hf.get("architectures") or ():
        if name in ARCHITECTURES:
            return ARCHITECTURES[name]
    found = ", ".join(hf.get("architectures") or ()) or "none named"
    problems.append(f"architecture {found} is not supported; supported: {', '.join(ARCHITECTURES)}")
    return ""


def _rope(hf: Mapping[str, Any], max_len: int, problems: list[str]) -> RopeConfig:
    # transformers 5 keeps all of RoPE in rope_parameters; before, theta stood beside rope_scaling.
    scaling = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    theta = float(scaling.get("rope_theta", hf.get("rope_theta") or 10_000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ROPE_KINDS:
        problems.append(f"rope type {kind!r} is not supported; supported: {', '.join(ROPE_KINDS)}")
        return RopeConfig(theta)
    needed: dict[str, tuple[str, ...]] = {
        "default": (),
        "linear": ("factor",),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    }
    missing = [name for name in needed[kind] if scaling.get(name) is None]
    if missing:
        problems.append(f"rope type {kind!r} lacks {', '.join(missing)}")
        return RopeConfig(theta)
    scales: dict[str, Any] = {name: float(scaling[name]) for name in needed[kind]}
    if any(not math.isfinite(value) or value <= 0 for value in scales.values()):
        problems.append(f"rope scaling must be positive and finite, found {scales}")
    rope = RopeConfig(theta=theta, kind=kind)
    if kind == "llama3":
        original = scaling.get("original_max_position_embeddings") or max_len
        rope = replace(rope, original_max_len=int(original))
    return replace(rope, **scales)
