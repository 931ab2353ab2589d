"""Llama 2 and 3, and models of the same architecture (SmolLM2)."""

from __future__ import annotations

from dataclasses import replace

from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.families.base import TINY_LLAMA, GgufForm, ModelFamily
from kvflow_jax.models.rope import RopeConfig

_LLAMA_3_1_8B = ModelConfig(
    family="llama",
    vocab_size=128_256,
    hidden_size=4096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    rope=RopeConfig(500_000.0, "llama3", 8.0, 1.0, 4.0, 8192),
    tie_embeddings=False,
    max_model_len=131_072,
    eos_token_ids=(128_001, 128_008, 128_009),
    bos_token_id=128_000,
)
_LLAMA_3_2_1B = replace(
    _LLAMA_3_1_8B,
    hidden_size=2048,
    intermediate_size=8192,
    num_layers=16,
    head_dim=64,
    rope=replace(_LLAMA_3_1_8B.rope, factor=32.0),
    tie_embeddings=True,
)
_SMOLLM2_135M = ModelConfig(
    family="llama",
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    rms_norm_eps=1e-5,
    rope=RopeConfig(100_000.0),
    tie_embeddings=True,
    max_model_len=8192,
    eos_token_ids=(2, 0),
    bos_token_id=1,
)

FAMILY = ModelFamily(
    name="llama",
    architectures=("LlamaForCausalLM",),
    has_bias_fields=True,
    gguf=GgufForm(architecture="llama", interleaves_qk=True),
    presets={
        "smollm2-135m": _SMOLLM2_135M,
        "llama-3.2-1b": _LLAMA_3_2_1B,
        "llama-3.1-8b": _LLAMA_3_1_8B,
    },
    tiny=TINY_LLAMA,
)
