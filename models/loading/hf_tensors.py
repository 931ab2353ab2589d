"""Tensors of Hugging Face checkpoints: what they are called, and where in our weights each goes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.model import LAYERS, Model

# Hugging Face name without its ".weight" or ".bias" -> (our name, part of a fused projection).
# "{i}" is the layer; layers are stacked in ours. "{e}" is the expert.
_LLAMA = {
    "model.embed_tokens": ("embed", ""),
    "model.norm": ("final_norm", ""),
    "lm_head": ("lm_head", ""),
    "model.layers.{i}.input_layernorm": ("layers.attention_norm", ""),
    "model.layers.{i}.self_attn.q_proj": ("layers.attention.qkv_proj", "q"),
    "model.layers.{i}.self_attn.k_proj": ("layers.attention.qkv_proj", "k"),
    "model.layers.{i}.self_attn.v_proj": ("layers.attention.qkv_proj", "v"),
    "model.layers.{i}.self_attn.o_proj": ("layers.attention.o_proj", ""),
    "model.layers.{i}.self_attn.q_norm": ("layers.attention.q_norm", ""),
    "model.layers.{i}.self_attn.k_norm": ("layers.attention.k_norm", ""),
    "model.layers.{i}.post_attention_layernorm": ("layers.mlp_norm", ""),
    "model.layers.{i}.mlp.gate_proj": ("layers.mlp.gate_up_proj", "gate"),
    "model.layers.{i}.mlp.up_proj": ("layers.mlp.gate_up_proj", "up"),
    "model.layers.{i}.mlp.down_proj": ("layers.mlp.down_proj", ""),
}


def _without(*parts: str) -> dict[str, tuple[str, str]]:
    return {name: ours for name, ours in _LLAMA.items() if not name.endswith(parts)}


# family -> its names, where they are not Llama's
NAMES = {
    "gemma3": _LLAMA
    | {
        "model.layers.{i}.post_attention_layernorm": ("layers.attention_out_norm", ""),
        "model.layers.{i}.pre_feedforward_layernorm": ("layers.mlp_norm", ""),
        "model.layers.{i}.post_feedforward_layernorm": ("layers.mlp_out_norm", ""),
    },
    "phi3": _without(".q_proj", ".k_proj", ".v_proj", ".gate_proj", ".up_proj")
    | {
        "model.layers.{i}.self_attn.qkv_proj": ("layers.attention.qkv_proj", ""),
        "model.layers.{i}.mlp.gate_up_proj": ("layers.mlp.gate_up_proj", ""),
    },
    "qwen3moe": _without(".gate_proj", ".up_proj", ".down_proj")
    | {
        "model.layers.{i}.mlp.gate": ("layers.mlp.router", ""),
        "model.layers.{i}.mlp.experts.{e}.gate_proj": ("layers.mlp.gate_up_proj", "gate"),
        "model.layers.{i}.mlp.experts.{e}.up_proj": ("layers.mlp.gate_up_proj", "up"),
        "model.layers.{i}.mlp.experts.{e}.down_proj": ("layers.mlp.down_proj", ""),
    },
}

# What a Hugging Face file's norms are short of: Gemma multiplies by 1 + weight. Added as weights
# are read: in bfloat16 that rounds the sum, no more than any other weight is rounded.
NORM_OFFSETS = {"gemma3": 1.0}

# Tensors that files may carry and models do not need: buffers of old releases, and what a
# multimodal checkpoint has for images.
IGNORED = re.compile(r".*\.rotary_emb\.inv_freq|(model\.)?(vision_tower|multi_modal_projector)\..*")

# Where multimodal checkpoints keep the language model, as of release 4.52 and before it.
PREFIXES = {"model.language_model.": "model.", "language_model.": ""}

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# Those that can be read, under numpy's names and safetensors' own.
DTYPE_NAMES = ("float64", "float32", "bfloat16", "float16", "F64", "F32", "BF16", "F16")

Header = tuple[str, tuple[int, ...], str]  # name, shape, dtype under one of DTYPE_NAMES or another


@dataclass(frozen=True, slots=True)
class Target:
    """Where a tensor goes: these columns of this layer, and of this expert, of a stacked weight.

    Attributes:
        transposed: Hugging Face keeps projections as [out, in], ours are [in, out].
        shape: of the tensor.
    """

    name: str
    at: tuple[int, ...]
    columns: slice
    transposed: bool
    shape: tuple[int, ...]


def targets_of(model: Model) -> dict[str, Target]:
    """Every tensor that a model needs."""
    config, targets = model.config, {}
    experts = range(config.moe.num_experts if config.moe else 0)
    for template, (ours, part) in NAMES.get(config.family, _LLAMA).items():
        for kind in ("weight", "bias"):
            name = f"{ours}.{kind}"
            spec = model.stacked_specs.get(name)
            if spec is None:
                continue
            columns = _columns(config, part, spec.shape[-1])
            is_projection = name.startswith(LAYERS) and len(spec.shape) > 2
            for i in range(config.num_layers) if "{i}" in template else [None]:
                for e in experts if "{e}" in template else [None]:
                    at = tuple(index for index in (i, e) if index is not None)
                    shape = (*spec.shape[len(at) : -1], columns.stop - columns.start)
                    key = f"{template.format(i=i, e=e)}.{kind}"
                    shape = shape[::-1] if is_projection else shape
                    targets[key] = Target(name, at, columns, is_projection, shape)
    return targets


def problems_of(model: Model, headers: Iterable[Header]) -> list[str]:
    """What is wrong with tensors, and which are missing: told before any is read."""
    targets, tied = targets_of(model), HEAD if model.config.tie_embeddings else ""
    missing, problems = dict.fromkeys(targets), []  # an ordered set
    found: set[str] = set()
    for key, shape, dtype in headers:
        target = targets.get(key)
        # With tied embeddings the output projection is the embedding, saved twice.
        if target is None and key != tied:
            if not IGNORED.fullmatch(key):
                problems.append(f"unexpected tensor {key} {list(shape)}")
            continue
        if key in found:
            problems.append(f"{key} is there twice")
        found.add(key)
        missing.pop(key, None)
        if target is not None and shape != target.shape:
            problems.append(f"{key}: expected shape {list(target.shape)}, found {list(shape)}")
        elif dtype not in DTYPE_NAMES:
            problems.append(f"{key}: expected float32, bfloat16 or float16, found {dtype}")
    return problems + [f"missing tensor {key}" for key in missing]


def names_of(config: ModelConfig, ours: str, layer: int) -> list[str]:
    """Hugging Face's names of all that is laid in one layer of our weight."""
    ours, _, kind = ours.rpartition(".")
    names = NAMES.get(config.family, _LLAMA).items()
    return [f"{theirs.format(i=layer, e='*')}.{kind}" for theirs, (own, _) in names if own == ours]


def plain_name(key: str) -> str:
    """A tensor's name without what a multimodal checkpoint puts before it."""
    for prefix, instead in PREFIXES.items():
        if key.startswith(prefix):
            return instead + key.removeprefix(prefix)
    return key


def _columns(config: ModelConfig, part: str, width: int) -> slice:
    """Outputs of a fused projection, this many wide, that a part fills."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "": slice(0, width),
        "q": slice(0, q),
        "k": slice(q, q + kv),
        "v": slice(q + kv, q + 2 * kv),
        "gate": slice(0, width // 2),
        "up": slice(width // 2, width),
    }[part]
