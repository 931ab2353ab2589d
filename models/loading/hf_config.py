"""Reads the Hugging Face config.json of every model family in ``models.families``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.families import BY_ARCHITECTURE
from kvflow_jax.models.families.base import ModelFamily
from kvflow_jax.models.families.hf_fields import (
    MAX_HEAD_DIM,
    MAX_LAYERS,
    MAX_VOCABULARY,
    HfFields,
    Json,
    shortened,
)
from kvflow_jax.models.families.hf_rope import extended_len, read_rope
from kvflow_jax.models.json_file import read_json
from kvflow_jax.models.loading.compressed_tensors import check_quantization
from kvflow_jax.models.rope import RopeConfig

# Hugging Face name -> name in ``ModelConfig``.
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

# Other name -> the name used here: Gemma's, and the one that transformers 5 writes.
ALIASES = {"hidden_activation": "hidden_act", "num_local_experts": "num_experts"}

# Fields outside of a multimodal model's ``text_config`` that hold for its language model, too.
_OUTSIDE = (
    *("architectures", "eos_token_id", "bos_token_id", "tie_word_embeddings"),
    *("quantization_config", "dtype", "torch_dtype"),
)


def read_config(hf: Json) -> ModelConfig:
    """Parse a Hugging Face config.json, as written by transformers 5 or by older releases.

    Raises:
        ModelLoadError: listing every missing field and unsupported value.
    """
    fields = HfFields(hf)
    family = _family(fields)
    fields = HfFields(_effective(hf, fields, family), fields.problems)
    config = _read_shared(fields, family)
    if family is not None:
        # As long as the context that RoPE extends: windows are compared with it.
        lengths = {"max_position_embeddings": config.max_model_len}
        fields = HfFields({**fields.values, **lengths}, fields.problems)
        if family.has_bias_fields:
            biased, mlp_biased = fields.flag("attention_bias"), fields.flag("mlp_bias")
            config = replace(config, qkv_bias=biased, out_bias=biased, mlp_bias=mlp_biased)
        configured = family.configure(config, fields)
        if not isinstance(configured, ModelConfig):
            raise ModelLoadError(f"family {family.name}: configure must return a ModelConfig")
        config = configured
        for name in family.unsupported:
            if fields.flag(name):
                fields.report(f"{name} is not supported")
    fields.problems.raise_if_any()
    return config


def read_config_file(folder: Path) -> ModelConfig:
    """Parse the config.json of a Hugging Face folder.

    Raises:
        ModelLoadError: the file is missing or not JSON, or the model is not supported.
    """
    path = folder / "config.json"
    try:
        return read_config(read_json(path))
    except FileNotFoundError as error:
        raise ModelLoadError(
            f"missing file {path}; give a Hugging Face folder with config.json and safetensors "
            "files, or a .gguf file"
        ) from error


def _family(hf: HfFields) -> ModelFamily | None:
    """Return the family of the first supported architecture; if there is none, report that."""
    architectures = hf.texts("architectures")
    for name in architectures:
        if name in BY_ARCHITECTURE:
            return BY_ARCHITECTURE[name]
    hf.report(
        f"architecture {shortened(', '.join(architectures)) or '(none named)'} is not supported; "
        "supported: " + ", ".join(BY_ARCHITECTURE)
    )
    return None


def _effective(hf: Json, fields: HfFields, family: ModelFamily | None) -> Json:
    """Return the fields of the language model, with the family's defaults, under one name each."""
    if "text_config" in hf:
        outside = {name: hf[name] for name in _OUTSIDE if name in hf}
        hf = {**fields.nested("text_config").values, **outside}
    present = {name: value for name, value in hf.items() if value is not None}
    aliased = {ours: present[theirs] for theirs, ours in ALIASES.items() if theirs in present}
    # "sliding_window": null means no window; only a missing field means the default.
    defaults = {
        name: value
        for name, value in ({} if family is None else family.defaults).items()
        if name != "sliding_window" or name not in hf
    }
    return {**defaults, **present, **aliased}


def _read_shared(hf: HfFields, family: ModelFamily | None) -> ModelConfig:
    """Return the config with the fields that families share; report the problems of others."""
    if hf.flag("quantization_config"):
        check_quantization(hf.nested("quantization_config"))
    num_heads = hf.size("num_attention_heads")
    config = ModelConfig(
        family="" if family is None else family.name,
        vocab_size=hf.size("vocab_size", limit=MAX_VOCABULARY),
        hidden_size=hf.size("hidden_size"),
        intermediate_size=hf.size("intermediate_size"),
        num_layers=_read_num_layers(hf),
        num_heads=num_heads,
        num_kv_heads=hf.size("num_key_value_heads", num_heads),
        head_dim=_read_head_dim(hf),
        rms_norm_eps=hf.positive("rms_norm_eps"),
        rope=RopeConfig(),
        tie_embeddings=hf.flag("tie_word_embeddings"),
        max_model_len=hf.size("max_position_embeddings"),
        dtype=hf.text("dtype") or hf.text("torch_dtype"),
        activation=_read_activation(hf),
        eos_token_ids=hf.token_ids("eos_token_id"),
        bos_token_id=next(iter(hf.token_ids("bos_token_id")), None),
    )
    is_usable = hf.usable("num_attention_heads", "num_key_value_heads")
    if is_usable and config.num_heads % config.num_kv_heads:
        hf.report(
            f"num_attention_heads {config.num_heads} is not a multiple of num_key_value_heads "
            f"{config.num_kv_heads}"
        )
    if family is None:
        return replace(config, rope=read_rope(hf, config.head_dim))
    rope = read_rope(hf, config.head_dim, aliases=family.rope_aliases)
    if family.rope_extends_context:
        config = replace(config, max_model_len=extended_len(rope, config.max_model_len))
    return replace(config, rope=rope)


def _read_num_layers(hf: HfFields) -> int:
    num_layers = hf.size("num_hidden_layers")
    if num_layers <= MAX_LAYERS:
        return num_layers
    # At once: families read the windows layer by layer.
    hf.fail(f"num_hidden_layers is {num_layers}, above the limit of {MAX_LAYERS}")


def _read_head_dim(hf: HfFields) -> int:
    hidden_size, num_heads = hf.size("hidden_size"), hf.size("num_attention_heads")
    if hf.has("head_dim") or not hf.usable("hidden_size", "num_attention_heads"):
        return hf.size("head_dim", 2, limit=MAX_HEAD_DIM)
    if hidden_size % num_heads:
        hf.report(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}, and "
            "config.json has no head_dim"
        )
    return min(max(hidden_size // num_heads, 1), MAX_HEAD_DIM)


def _read_activation(hf: HfFields) -> str:
    name = hf.text("hidden_act", "silu")
    if name not in ACTIVATIONS:
        hf.report(
            f"hidden_act {shortened(name)!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS.get(name, "silu")
