"""Phi-3: fused projections in the checkpoint, a sliding window, LongRoPE."""

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
from kvflow_jax.models.families.hf_windows import read_windows


def _configure(config: ModelConfig, hf: HfFields) -> ModelConfig:
    return replace(config, windows=read_windows(hf))


FAMILY = ModelFamily(
    name="phi3",
    architectures=("Phi3ForCausalLM",),
    # The name that LongRoPE had in the first checkpoints.
    rope_aliases={"yarn": "longrope"},
    configure=_configure,
    tensors={
        **without(LLAMA_TENSORS, ".q_proj", ".k_proj", ".v_proj", ".gate_proj", ".up_proj"),
        "model.layers.{i}.self_attn.qkv_proj": Target("layers.attention.qkv_proj"),
        "model.layers.{i}.mlp.gate_up_proj": Target("layers.mlp.gate_up_proj"),
    },
    gguf=GgufForm(architecture="phi3", strips_after_control=True),
    tiny={
        **TINY_LLAMA,
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "num_key_value_heads": 4,
        "sliding_window": 40,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
    },
)
