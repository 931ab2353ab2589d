"""Tensors of Hugging Face checkpoints: the slice of a weight that each fills, and their checks.

``models.families`` has the names of a family's tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.families import FAMILIES
from kvflow_jax.models.families.base import Part
from kvflow_jax.models.model import LAYERS, Model

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
    """Map the Hugging Face name of each tensor that a model needs to its slice.

    Raises:
        ModelLoadError: the family's record names no tensor for a weight of the model.
    """
    config, slices = model.config, {}
    family, unfilled = FAMILIES[config.family], dict.fromkeys(model.stacked_specs)
    experts = range(config.moe.num_experts if config.moe else 0)
    for template, (weight, part) in family.tensors.items():
        for kind in ("weight", "bias"):
            name = f"{weight}.{kind}"
            spec = model.stacked_specs.get(name)
            # Not every model of a family has every weight: biases, an output head.
            if spec is None:
                continue
            unfilled.pop(name, None)
            columns = _columns(config, part, spec.shape[-1])
            is_projection = name.startswith(LAYERS) and len(spec.shape) > 2
            for layer in range(config.num_layers) if "{i}" in template else [None]:
                for expert in experts if "{e}" in template else [None]:
                    index = tuple(i for i in (layer, expert) if i is not None)
                    shape = (*spec.shape[len(index) : -1], columns.stop - columns.start)
                    key = f"{template.format(i=layer, e=expert)}.{kind}"
                    shape = shape[::-1] if is_projection else shape
                    slices[key] = WeightSlice(name, index, columns, is_projection, shape)
    if unfilled:
        raise ModelLoadError(
            f"model family {config.family!r} names no tensor for {', '.join(unfilled)}"
        )
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
    return [
        f"{template.format(i=layer, e='*')}.{kind}"
        for template, target in FAMILIES[config.family].tensors.items()
        if target.weight == weight
    ]


def canonical_name(key: str) -> str:
    """Return a tensor's name without the prefix of a multimodal checkpoint."""
    for prefix, replacement in PREFIXES.items():
        if key.startswith(prefix):
            return replacement + key.removeprefix(prefix)
    return key


def _columns(config: ModelConfig, part: Part, width: int) -> slice:
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
