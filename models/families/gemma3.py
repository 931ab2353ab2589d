"""Gemma 3: norms before and after, scaled embeddings, a second RoPE for layers with a window."""

from __future__ import annotations

import math
from dataclasses import replace

from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.families.base import (
    LLAMA_TENSORS,
    QK_NORM_TENSORS,
    TINY_LLAMA,
    GgufForm,
    ModelFamily,
    Target,
    without,
)
from kvflow_jax.models.families.hf_fields import HfFields, Json
from kvflow_jax.models.families.hf_rope import read_rope
from kvflow_jax.models.families.hf_windows import FULL, SLIDING, read_windows

# Layers from one without a window to the next, unless the files say otherwise.
_PERIOD = 6
# The query scalar of 27B is not its head_dim. No field of a .gguf file holds it: llama.cpp, too,
# goes by the depth.
_LAYERS_OF_27B = 62

_WINDOW = 4096

# The text_config of multimodal checkpoints leaves out fields that have these values.
_DEFAULTS: Json = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "sliding_window": _WINDOW,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "hidden_act": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
}


def _configure(config: ModelConfig, hf: HfFields) -> ModelConfig:
    period = hf.size("sliding_window_pattern", _PERIOD)
    local_theta = hf.positive("rope_local_base_freq")
    return replace(
        config,
        qk_norm="head",
        out_norms=True,
        embed_scale=math.sqrt(config.hidden_size),
        query_scalar=hf.positive("query_pre_attn_scalar"),
        windows=read_windows(hf, lambda layer: (layer + 1) % period > 0, keep_longest=True),
        local_rope=read_rope(hf, config.head_dim, layers=SLIDING, theta=local_theta),
    )


def _complete(hf: HfFields, gguf: HfFields) -> Json:
    num_layers = hf.size("num_hidden_layers")
    query_scalar = hf.size("hidden_size") / hf.size("num_attention_heads")
    if num_layers != _LAYERS_OF_27B:
        query_scalar = hf.positive("head_dim", query_scalar)
    windowed = gguf.values.get("attention.sliding_window_pattern") or _PERIOD
    if not isinstance(windowed, list):
        period = gguf.size("attention.sliding_window_pattern", _PERIOD)
        windowed = [(layer + 1) % period > 0 for layer in range(num_layers)]
    return {
        "query_pre_attn_scalar": query_scalar,
        "sliding_window": gguf.size("attention.sliding_window", _WINDOW),
        "layer_types": [SLIDING if is_windowed else FULL for is_windowed in windowed],
    }


FAMILY = ModelFamily(
    name="gemma3",
    # Of the multimodal one only the language model is loaded.
    architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    defaults=_DEFAULTS,
    has_bias_fields=True,
    rope_extends_context=False,
    unsupported=(
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "use_bidirectional_attention",
    ),
    configure=_configure,
    tensors={
        **without(LLAMA_TENSORS, ".post_attention_layernorm"),
        **QK_NORM_TENSORS,
        "model.layers.{i}.post_attention_layernorm": Target("layers.attention_out_norm"),
        "model.layers.{i}.pre_feedforward_layernorm": Target("layers.mlp_norm"),
        "model.layers.{i}.post_feedforward_layernorm": Target("layers.mlp_out_norm"),
    },
    # The decoder of transformers multiplies by 1 + weight. In bfloat16 adding 1 as weights are read
    # rounds the sum, which is the rounding of any other weight.
    norm_offset=1.0,
    overflows_float16=True,
    gguf=GgufForm(
        architecture="gemma3",
        fields={"rope.freq_base_swa": "rope_local_base_freq"},
        complete=_complete,
        merges_in_token_order=True,
    ),
    tiny={
        **{name: value for name, value in TINY_LLAMA.items() if name != "hidden_act"},
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_hidden_layers": 4,
        "head_dim": 24,
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-6,
        "query_pre_attn_scalar": 24,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "sliding_window": 12,
        "sliding_window_pattern": 3,
        "attention_bias": False,
    },
)
