"""Qwen3-MoE: a mixture of experts in every layer, and norms of each head's query and key."""

from __future__ import annotations

from dataclasses import replace

from kvflow_jax.models.config import ModelConfig, MoeConfig
from kvflow_jax.models.families import qwen3
from kvflow_jax.models.families.base import (
    LLAMA_TENSORS,
    QK_NORM_TENSORS,
    TINY_LLAMA,
    GgufForm,
    ModelFamily,
    Target,
    without,
)
from kvflow_jax.models.families.hf_fields import (
    MAX_EXPERTS,
    MAX_EXPERTS_OF_ALL_LAYERS,
    HfFields,
    Json,
)
from kvflow_jax.models.families.hf_windows import read_windows


def _configure(config: ModelConfig, hf: HfFields) -> ModelConfig:
    windows = read_windows(hf) if hf.flag("use_sliding_window") else ()
    return replace(config, qk_norm="head", windows=windows, moe=_read_moe(hf))


def _read_moe(hf: HfFields) -> MoeConfig:
    moe = MoeConfig(
        num_experts=hf.size("num_experts", limit=MAX_EXPERTS),
        num_experts_per_token=hf.size("num_experts_per_tok"),
        intermediate_size=hf.size("moe_intermediate_size"),
        normalise_weights=hf.flag("norm_topk_prob"),
    )
    if hf.number("decoder_sparse_step", 1) != 1 or hf.flag("mlp_only_layers"):
        hf.report(
            "layers without a mixture of experts are not supported: decoder_sparse_step must be 1 "
            "and mlp_only_layers empty"
        )
    is_usable = hf.usable("num_experts", "num_experts_per_tok")
    num_layers = hf.size("num_hidden_layers")
    if is_usable and moe.num_experts * num_layers > MAX_EXPERTS_OF_ALL_LAYERS:
        # At once: the names of their tensors alone would fill memory.
        hf.fail(
            f"num_experts {moe.num_experts} in each of {num_layers} layers are above the limit of "
            f"{MAX_EXPERTS_OF_ALL_LAYERS}"
        )
    if is_usable and moe.num_experts_per_token > moe.num_experts:
        hf.report(
            f"num_experts_per_tok {moe.num_experts_per_token} is above num_experts "
            f"{moe.num_experts}"
        )
    return moe


def _complete(hf: HfFields, gguf: HfFields) -> Json:
    # No field of a file holds it; llama.cpp normalises always.
    return {"norm_topk_prob": True}


FAMILY = ModelFamily(
    name="qwen3-moe",
    architectures=("Qwen3MoeForCausalLM",),
    defaults={"sliding_window": 4096},
    has_bias_fields=True,
    configure=_configure,
    tensors={
        **without(LLAMA_TENSORS, ".gate_proj", ".up_proj", ".down_proj"),
        **QK_NORM_TENSORS,
        "model.layers.{i}.mlp.gate": Target("layers.mlp.router"),
        "model.layers.{i}.mlp.experts.{e}.gate_proj": Target("layers.mlp.gate_up_proj", "gate"),
        "model.layers.{i}.mlp.experts.{e}.up_proj": Target("layers.mlp.gate_up_proj", "up"),
        "model.layers.{i}.mlp.experts.{e}.down_proj": Target("layers.mlp.down_proj"),
    },
    gguf=GgufForm(
        architecture="qwen3moe",
        fields={
            "expert_count": "num_experts",
            "expert_used_count": "num_experts_per_tok",
            "expert_feed_forward_length": "moe_intermediate_size",
        },
        complete=_complete,
    ),
    presets={
        "qwen3-30b-a3b": replace(
            qwen3.FAMILY.presets["qwen3-0.6b"],
            family="qwen3-moe",
            hidden_size=2048,
            intermediate_size=6144,
            num_layers=48,
            num_heads=32,
            num_kv_heads=4,
            tie_embeddings=False,
            moe=MoeConfig(
                num_experts=128,
                num_experts_per_token=8,
                intermediate_size=768,
                normalise_weights=True,
            ),
        )
    },
    tiny={
        **TINY_LLAMA,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 40,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "tie_word_embeddings": False,
    },
)
