"""Qwen3: norms of each head's query and key."""

from __future__ import annotations

from dataclasses import replace

from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.families.base import (
    LLAMA_TENSORS,
    QK_NORM_TENSORS,
    TINY_LLAMA,
    GgufForm,
    ModelFamily,
)
from kvflow_jax.models.families.hf_fields import HfFields
from kvflow_jax.models.families.qwen2 import late_windows
from kvflow_jax.models.rope import RopeConfig


def _configure(config: ModelConfig, hf: HfFields) -> ModelConfig:
    return replace(config, qk_norm="head", windows=late_windows(hf))


FAMILY = ModelFamily(
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    defaults={"head_dim": 128, "sliding_window": 4096},
    has_bias_fields=True,
    configure=_configure,
    tensors={**LLAMA_TENSORS, **QK_NORM_TENSORS},
    gguf=GgufForm(architecture="qwen3"),
    presets={
        "qwen3-0.6b": ModelConfig(
            family="qwen3",
            vocab_size=151_936,
            hidden_size=1024,
            intermediate_size=3072,
            num_layers=28,
            num_heads=16,
            num_kv_heads=8,
            head_dim=128,
            rms_norm_eps=1e-6,
            rope=RopeConfig(1_000_000.0),
            tie_embeddings=True,
            max_model_len=40_960,
            qk_norm="head",
            eos_token_ids=(151_645, 151_643),
            bos_token_id=151_643,
        )
    },
    tiny={
        **TINY_LLAMA,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
    },
)
