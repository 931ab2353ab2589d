"""Qwen2 and Qwen2.5: biases on the query, key and value projections."""

from __future__ import annotations

from dataclasses import replace

from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.families.base import TINY_LLAMA, GgufForm, ModelFamily
from kvflow_jax.models.families.hf_fields import HfFields
from kvflow_jax.models.families.hf_windows import read_windows


def late_windows(hf: HfFields) -> tuple[int, ...]:
    """Return ``ModelConfig.windows``: if switched on, from layer ``max_window_layers`` on."""
    if not hf.flag("use_sliding_window"):
        return ()
    first = hf.number("max_window_layers", 28.0)
    return read_windows(hf, lambda layer: layer >= first)


def _configure(config: ModelConfig, hf: HfFields) -> ModelConfig:
    return replace(config, qkv_bias=True, windows=late_windows(hf))


FAMILY = ModelFamily(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    defaults={"sliding_window": 4096},
    configure=_configure,
    gguf=GgufForm(architecture="qwen2"),
    tiny={
        **TINY_LLAMA,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "num_key_value_heads": 1,
        "use_sliding_window": False,
        "sliding_window": 16,
        "max_window_layers": 1,
    },
)
