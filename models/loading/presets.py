"""Model shapes to serve with random weights: benchmarks need no download."""

from __future__ import annotations

from kvflow_jax.models.config import ModelConfig, MoeConfig
from kvflow_jax.models.loading import embedded
from kvflow_jax.models.rope import RopeConfig

PRESETS = {
    embedded.NAME: embedded.CONFIG,
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
        qk_norm=True,
        eos_token_ids=(151_645, 151_643),
        bos_token_id=151_643,
    ),
    "llama-3.2-1b": ModelConfig(
        family="llama",
        vocab_size=128_256,
        hidden_size=2048,
        intermediate_size=8192,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        rms_norm_eps=1e-5,
        rope=RopeConfig(500_000.0, "llama3", 32.0, 1.0, 4.0, 8192),
        tie_embeddings=True,
        max_model_len=131_072,
        eos_token_ids=(128_001, 128_008, 128_009),
        bos_token_id=128_000,
    ),
    "llama-3.1-8b": ModelConfig(
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
    ),
    "qwen3-30b-a3b": ModelConfig(
        family="qwen3moe",
        vocab_size=151_936,
        hidden_size=2048,
        intermediate_size=6144,
        num_layers=48,
        num_heads=32,
        num_kv_heads=4,
        head_dim=128,
        rms_norm_eps=1e-6,
        rope=RopeConfig(1_000_000.0),
        tie_embeddings=False,
        max_model_len=40_960,
        qk_norm=True,
        moe=MoeConfig(
            num_experts=128, num_experts_per_token=8, intermediate_size=768, normalise_weights=True
        ),
        eos_token_ids=(151_645, 151_643),
        bos_token_id=151_643,
    ),
}
