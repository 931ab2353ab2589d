"""Names of the tensors in Hugging Face checkpoints, and the slice of a weight that each fills."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.model import LAYERS, Model

# Hugging Face name without ".weight" or ".bias" -> (weight, part of a fused projection). "{i}" is
# the layer and "{e}" the expert; a weight stacks all layers and all experts.
_LLAMA_NAMES = {
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
    """Return Llama's names but those that end with one of ``parts``."""
    return {name: weight for name, weight in _LLAMA_NAMES.items() if not name.endswith(parts)}


# family -> its names, if they are not Llama's
NAMES = {
    "gemma3": _LLAMA_NAMES
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

# family -> offset of its norms: Gemma multiplies by 1 + weight. It is added as weights are read. In
# bfloat16 that rounds the sum, which is the rounding of any other weight.
NORM_OFFSETS = {"gemma3": 1.0}

# Tensors that a model does not need: buffers of old releases, and the image parts of multimodal
# checkpoints.
IGNORED = re.compile(r".*\.rotary_emb\.inv_freq|(model\.)?(vision_tower|multi_modal_projector)\..*")

# Prefix of the language model in multimodal checkpoints (since transformers 4.52, and before it) ->
# its replacement.
PREFIXES = {"model.language_model.": "model.", "language_model.": ""}

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# Supported dtypes by the names of numpy and of safetensors.
DTYPE_NAMES = ("float64", "float32", "bfloat16", "float16", "F64", "F32", "BF16", "F16")

# Name, shape and dtype of a tensor; the dtype need not be one of DTYPE_NAMES.
Header = tuple[str, tuple[int, ...], str]


@dataclass(frozen=True, slots=True)
class WeightSlice:
    """The slice of a stacked weight that a tensor fills.

    Attributes:
        name: of the stacked weight.
        index: of the layer and the expert, where the weight stacks them.
        columns: range on the weight's last axis.
        transposed: whether the tensor is [out, in], as Hugging Face's projections are; the weight
            is [in, out].
        shape: of the tensor.
    """

    name: str
    index: tuple[int, ...]
    columns: slice
    transposed: bool
    shape: tuple[int, ...]


def weight_slices(model: Model) -> dict[str, WeightSlice]:
    """Map the Hugging Face name of each tensor that a model needs to its slice."""
    config, slices = model.config, {}
    experts = range(config.moe.num_experts if config.moe else 0)
    for template, (weight, part) in NAMES.get(config.family, _LLAMA_NAMES).items():
        for kind in ("weight", "bias"):
            name = f"{weight}.{kind}"
            spec = model.stacked_specs.get(name)
            if spec is None:
                continue
            columns = _columns(config, part, spec.shape[-1])
            is_projection = name.startswith(LAYERS) and len(spec.shape) > 2
            for layer in range(config.num_layers) if "{i}" in template else [None]:
                for expert in experts if "{e}" in template else [None]:
                    index = tuple(i for i in (layer, expert) if i is not None)
                    shape = (*spec.shape[len(index) : -1], columns.stop - columns.start)
                    key = f"{template.format(i=layer, e=expert)}.{kind}"
                    shape = shape[::-1] if is_projection else shape
                    slices[key] = WeightSlice(name, index, columns, is_projection, shape)
    return slices


def header_problems(model: Model, headers: Iterable[Header]) -> list[str]:
    """List missing, unexpected, repeated and misshapen tensors, and those of unsupported dtypes.

    Only headers are looked at, so that a wrong file is rejected before a tensor is read.
    """
    slices, tied = weight_slices(model), HEAD if model.config.tie_embeddings else ""
    # A dict serves as an ordered set.
    missing, problems = dict.fromkeys(slices), []
    found: set[str] = set()
    for key, shape, dtype in headers:
        expected = slices.get(key)
        # A model with tied embeddings may have its embedding saved twice, as lm_head, too.
        if expected is None and key != tied:
            if not IGNORED.fullmatch(key):
                problems.append(f"unexpected tensor {key} {list(shape)}")
            continue
        if key in found:
            problems.append(f"duplicate tensor {key}")
        found.add(key)
        missing.pop(key, None)
        if expected is not None and shape != expected.shape:
            problems.append(f"{key}: expected shape {list(expected.shape)}, found {list(shape)}")
        elif dtype not in DTYPE_NAMES:
            problems.append(f"{key}: expected float32, bfloat16 or float16, found {dtype}")
    return problems + [f"missing tensor {key}" for key in missing]


def hf_names_of(config: ModelConfig, name: str, layer: int) -> list[str]:
    """Return the Hugging Face names of the tensors that fill one layer of a stacked weight."""
    weight, _, kind = name.rpartition(".")
    names = NAMES.get(config.family, _LLAMA_NAMES)
    return [
        f"{template.format(i=layer, e='*')}.{kind}"
        for template, (target, _) in names.items()
        if target == weight
    ]


def canonical_name(key: str) -> str:
    """Return a tensor's name without the prefix of a multimodal checkpoint."""
    for prefix, replacement in PREFIXES.items():
        if key.startswith(prefix):
            return replacement + key.removeprefix(prefix)
    return key


def _columns(config: ModelConfig, part: str, width: int) -> slice:
    """Return the columns that a part fills of a fused projection of ``width`` columns."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "": slice(0, width),
        "q": slice(0, q),
        "k": slice(q, q + kv),
        "v": slice(q + kv, q + 2 * kv),
        "gate": slice(0, width // 2),
        "up": slice(width // 2, width),
    }[part]
