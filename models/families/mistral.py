"""Mistral: Llama with a sliding window."""

from __future__ import annotations

from dataclasses import replace

from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.families.base import TINY_LLAMA, ModelFamily
from kvflow_jax.models.families.hf_fields import HfFields
from kvflow_jax.models.families.hf_windows import read_windows


def _configure(config: ModelConfig, hf: HfFields) -> ModelConfig:
    return replace(config, windows=read_windows(hf))


FAMILY = ModelFamily(
    name="mistral",
    architectures=("MistralForCausalLM",),
    defaults={"sliding_window": 4096},
    configure=_configure,
    # llama.cpp converts Mistral models as llama.
    gguf=None,
    tiny={
        **TINY_LLAMA,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 20,
        "head_dim": 32,
        "tie_word_embeddings": False,
        "rope_theta": 1_000_000.0,
    },
)
