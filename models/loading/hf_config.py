"""Reads the Hugging Face config.json of every supported model family.

All families share one definition (models/decoder.py) and differ only in data. ``FAMILIES`` holds
how their config.json files differ: constant fields, defaults of missing fields, unsupported fields.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.config import ModelConfig, MoeConfig, token_ids
from kvflow_jax.models.loading.hf_rope import Hf, read_ropes

# A larger number is a mistake, and would take minutes to check layer by layer.
MAX_LAYERS = 4096
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

# Other name -> the name used here: Gemma's, and the one that transformers 5 writes.
ALIASES = {"hidden_activation": "hidden_act", "num_local_experts": "num_experts"}

REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "rms_norm_eps",
    "max_position_embeddings",
)
# Optional fields that must be above 0 where they are present.
POSITIVE = (
    "num_key_value_heads",
    "head_dim",
    "num_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "rope_theta",
    "rope_local_base_freq",
    "sliding_window_pattern",
)


@dataclass(frozen=True, slots=True)
class _Family:
    """How the config.json files of a family differ from Llama's.

    Attributes:
        constants: fields of ``ModelConfig`` that are the same in every model of the family.
        defaults: transformers' values of fields that a config.json may leave out.
        biases: whether the family reads ``attention_bias`` and ``mlp_bias``.
        unsupported: fields that must be absent or false; the model does not implement them.
    """

    name: str
    constants: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    biases: bool = False
    unsupported: tuple[str, ...] = ()


_GEMMA3 = _Family(
    "gemma3",
    constants={"qk_norm": True, "out_norms": True},
    # The text_config of multimodal checkpoints leaves out fields that have these values.
    defaults={
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131_072,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "hidden_act": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
    },
    biases=True,
    unsupported=(
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "use_bidirectional_attention",
    ),
)

_WINDOW = {"sliding_window": 4096}

# architecture in config.json -> family
FAMILIES = {
    "LlamaForCausalLM": _Family("llama", biases=True),
    "MistralForCausalLM": _Family("mistral", defaults=_WINDOW),
    "Qwen2ForCausalLM": _Family("qwen2", constants={"qkv_bias": True}, defaults=_WINDOW),
    "Qwen3ForCausalLM": _Family(
        "qwen3", constants={"qk_norm": True}, defaults={"head_dim": 128, **_WINDOW}, biases=True
    ),
    "Qwen3MoeForCausalLM": _Family(
        "qwen3moe", constants={"qk_norm": True}, defaults=_WINDOW, biases=True
    ),
    "Gemma3ForCausalLM": _GEMMA3,
    # Multimodal: only the language model is loaded.
    "Gemma3ForConditionalGeneration": _GEMMA3,
    "Phi3ForCausalLM": _Family("phi3"),
}


def read_config(hf: Hf) -> ModelConfig:
    """Parse a Hugging Face config.json, as written by transformers 5 or by older releases.

    Raises:
        ModelLoadError: listing every missing field and unsupported value.
    """
    try:
        return _read(hf)
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ModelLoadError(f"config.json has a value of the wrong type: {error}") from error


def _read(hf: Hf) -> ModelConfig:
    problems: list[str] = []
    family = _family(hf, problems)
    present = {name: value for name, value in _text_part(hf).items() if value is not None}
    aliased = {ours: present[theirs] for theirs, ours in ALIASES.items() if theirs in present}
    # "sliding_window": null means no window; only a missing field means the default.
    defaults = {
        name: value
        for name, value in family.defaults.items()
        if name != "sliding_window" or name not in _text_part(hf)
    }
    hf = defaults | present | aliased
    required: dict[str, Any] = {name: hf.get(name) for name in REQUIRED}
    missing = [name for name, value in required.items() if value is None]
    if missing:
        problems.append(f"config.json lacks {', '.join(missing)}")
    low = [
        f"{name} is {value}"
        for name, value in (required | {name: hf.get(name) for name in POSITIVE}).items()
        if value is not None and not 0 < float(value) < math.inf
    ]
    if (required["num_hidden_layers"] or 0) > MAX_LAYERS:
        problems.append(
            f"num_hidden_layers is {required['num_hidden_layers']}, above the limit of {MAX_LAYERS}"
        )
        raise _load_error(problems)
    if low:
        problems.append(f"sizes must be above 0 and finite, but {', '.join(low)}")
        raise _load_error(problems)
    if hf.get("quantization_config"):
        problems.append(
            "quantized weights (quantization_config) are not supported; use the unquantized "
            "checkpoint or a .gguf file"
        )
    problems += [f"{name} is not supported" for name in family.unsupported if hf.get(name)]
    activation = hf.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        problems.append(
            f"hidden_act {activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
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
    rope, local_rope = read_ropes(hf, family.name, int(head_dim or 2), problems)
    moe = _moe(hf, problems) if family.name == "qwen3moe" else None
    windows = _windows(hf, family.name, problems)
    if problems:
        raise _load_error(problems)
    fields: dict[str, Any] = {}
    if family.biases:
        fields["qkv_bias"] = fields["out_bias"] = bool(hf.get("attention_bias", False))
        fields["mlp_bias"] = bool(hf.get("mlp_bias", False))
    if family.name == "gemma3":
        fields["embed_scale"] = math.sqrt(required["hidden_size"])
        fields["query_scalar"] = float(hf["query_pre_attn_scalar"])
    return ModelConfig(
        family=family.name,
        vocab_size=int(required["vocab_size"]),
        hidden_size=int(required["hidden_size"]),
        intermediate_size=int(required["intermediate_size"]),
        num_layers=int(required["num_hidden_layers"]),
        num_heads=int(heads),
        num_kv_heads=int(kv_heads),
        head_dim=int(head_dim),
        rms_norm_eps=float(required["rms_norm_eps"]),
        rope=rope,
        local_rope=local_rope,
        tie_embeddings=bool(hf.get("tie_word_embeddings", False)),
        max_model_len=int(required["max_position_embeddings"]),
        dtype=str(hf.get("dtype") or hf.get("torch_dtype") or ""),
        activation=ACTIVATIONS[activation],
        windows=windows,
        moe=moe,
        eos_token_ids=token_ids(hf.get("eos_token_id")),
        bos_token_id=next(iter(token_ids(hf.get("bos_token_id"))), None),
        **fields,
        **family.constants,
    )


def _load_error(problems: list[str]) -> ModelLoadError:
    return ModelLoadError("the model of config.json cannot be loaded:\n- " + "\n- ".join(problems))


def _family(hf: Hf, problems: list[str]) -> _Family:
    """Return the family of the first supported architecture, or append to ``problems``."""
    architectures = hf.get("architectures") or ()
    architectures = [architectures] if isinstance(architectures, str) else architectures
    for name in architectures:
        if name in FAMILIES:
            return FAMILIES[name]
    found = ", ".join(map(str, architectures)) or "(none named)"
    problems.append(f"architecture {found} is not supported; supported: {', '.join(FAMILIES)}")
    return _Family("")


def _text_part(hf: Hf) -> Hf:
    """Return the fields of the language model.

    A multimodal config.json keeps them in ``text_config``; a few are, or are overridden, outside.
    """
    if "text_config" not in hf:
        return hf
    names = (
        *("eos_token_id", "bos_token_id", "tie_word_embeddings", "quantization_config"),
        *("dtype", "torch_dtype"),
    )
    outside = {name: hf[name] for name in names if name in hf}
    return dict(hf["text_config"]) | outside


def _windows(hf: Hf, family: str, problems: list[str]) -> tuple[int, ...]:
    """Return ``ModelConfig.windows``: window lengths in tokens, one a layer, 0 for none."""
    num_layers, window = int(hf.get("num_hidden_layers") or 0), hf.get("sliding_window")
    if family == "llama" or not window:
        return ()
    # A window as long as the context hides nothing. Gemma keeps it: its layers with a window have
    # another RoPE.
    if family != "gemma3" and window >= int(hf.get("max_position_embeddings") or 0):
        return ()
    if family.startswith("qwen") and not hf.get("use_sliding_window", False):
        return ()
    kinds = hf.get("layer_types")
    if kinds is None:
        first = int(hf.get("max_window_layers", 28)) if family in ("qwen2", "qwen3") else 0
        period = int(hf.get("sliding_window_pattern", 6)) if family == "gemma3" else num_layers + 1
        kinds = [
            "sliding_attention" if i >= first and (i + 1) % period else "full_attention"
            for i in range(num_layers)
        ]
    unknown = {str(kind) for kind in kinds} - {"sliding_attention", "full_attention"}
    if unknown or len(kinds) != num_layers:
        problems.append(
            f"layer_types must name sliding_attention or full_attention for each of {num_layers} "
            f"layers, found {len(kinds)} of {', '.join(sorted({str(kind) for kind in kinds}))}"
        )
    windows = tuple(int(window) if kind == "sliding_attention" else 0 for kind in kinds)
    return windows if any(windows) else ()


def _moe(hf: Hf, problems: list[str]) -> MoeConfig | None:
    """Return the mixture of experts, or append to ``problems`` and return None."""
    names = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
    missing = [name for name in names if not hf.get(name)]
    if missing:
        problems.append(f"config.json lacks {', '.join(missing)}")
    if hf.get("decoder_sparse_step", 1) != 1 or hf.get("mlp_only_layers"):
        problems.append(
            "layers without a mixture of experts are not supported: decoder_sparse_step must be 1 "
            "and mlp_only_layers empty"
        )
    if missing:
        return None
    num_experts, num_experts_per_token, size = (int(hf[name]) for name in names)
    if num_experts_per_token > num_experts:
        problems.append(
            f"num_experts_per_tok {num_experts_per_token} is above num_experts {num_experts}"
        )
    return MoeConfig(
        num_experts, num_experts_per_token, size, bool(hf.get("norm_topk_prob", False))
    )
