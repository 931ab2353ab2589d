"""OLMo 2: norms only after attention and MLP, and over all heads of queries and of keys."""

from __future__ import annotations

from dataclasses import replace

from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.families.base import (
    LLAMA_TENSORS,
    TINY_LLAMA,
    GgufForm,
    ModelFamily,
    Target,
    without,
)
from kvflow_jax.models.families.hf_fields import HfFields


def _configure(config: ModelConfig, hf: HfFields) -> ModelConfig:
    return replace(config, qk_norm="projection", in_norms=False, out_norms=True)


FAMILY = ModelFamily(
    name="olmo2",
    architectures=("Olmo2ForCausalLM",),
    has_bias_fields=True,
    # llama.cpp writes OLMo 3, which has windows, as olmo2.
    unsupported=("sliding_window",),
    configure=_configure,
    tensors={
        **without(LLAMA_TENSORS, ".input_layernorm", ".post_attention_layernorm"),
        "model.layers.{i}.self_attn.q_norm": Target("layers.attention.q_proj_norm"),
        "model.layers.{i}.self_attn.k_norm": Target("layers.attention.k_proj_norm"),
        "model.layers.{i}.post_attention_layernorm": Target("layers.attention_out_norm"),
        "model.layers.{i}.post_feedforward_layernorm": Target("layers.mlp_out_norm"),
    },
    gguf=GgufForm(architecture="olmo2"),
    tiny={
        **TINY_LLAMA,
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        "rms_norm_eps": 1e-6,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
    },
)
