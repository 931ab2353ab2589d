"""Weights of a Hugging Face folder, read tensor by tensor into stacked host arrays."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.memory import returnable_empty
from kvflow_jax.models.model import LAYERS, Model

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

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

# Those that can be read, under numpy's names and safetensors' own.
DTYPE_NAMES = ("float64", "float32", "bfloat16", "float16", "F64", "F32", "BF16", "F16")


def names_of(config: ModelConfig, ours: str, layer: int) -> list[str]:
    """Hugging Face's names of all that is laid in one layer of our weight."""
    ours, _, kind = ours.rpartition(".")
    names = NAMES.get(config.family, _LLAMA).items()
    return [f"{theirs.format(i=layer, e='*')}.{kind}" for theirs, (own, _) in names if own == ours]


BLOCK_ROWS = 128
REOPEN_BYTES = 128 << 20


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a tensor goes: these columns of this layer, and of this expert, of a stacked array.

    Hugging Face keeps projections as [out, in], ours are [in, out].
    """

    name: str
    at: tuple[int, ...]
    columns: slice
    transposed: bool

    def place(self, array: np.ndarray) -> np.ndarray:
        """The view of our array that has the tensor's own orientation."""
        view = array[self.at][..., self.columns]
        return view.swapaxes(-1, -2) if self.transposed else view


class Checklist:
    """The tensors a model needs, ticked off as they are met; collects what is wrong.

    Args:
        source: where they are read from, for messages.
    """

    def __init__(self, model: Model, source: str) -> None:
        self.problems: list[str] = []
        self._source = source
        self._tied = model.config.tie_embeddings
        self._blanks = {  # arrays of the model's shapes that take no memory
            name: np.broadcast_to(np.uint8(0), spec.shape)
            for name, spec in model.stacked_specs.items()
        }
        self._targets = _targets(model)
        self._missing = dict.fromkeys(self._targets)  # an ordered set

    def tick(self, key: str, shape: tuple[int, ...], dtype: str) -> _Target | None:
        """Where a tensor of this name belongs; None where it cannot be used.

        Args:
            dtype: under numpy's name or that of safetensors.
        """
        target = self._targets.get(key)
        if target is None:
            # With tied embeddings the output projection is the embedding, saved twice.
            if not IGNORED.fullmatch(key) and not (self._tied and key == "lm_head.weight"):
                self.problems.append(f"unexpected tensor {key} {list(shape)}")
            return None
        if key not in self._missing:
            self.problems.append(f"{key} is there twice")
        self._missing.pop(key, None)
        expected = target.place(self._blanks[target.name]).shape
        if shape != expected:
            self.problems.append(f"{key}: expected shape {list(expected)}, found {list(shape)}")
        elif dtype not in DTYPE_NAMES:
            self.problems.append(f"{key}: expected float32, bfloat16 or float16, found {dtype}")
        else:
            return target
        return None

    def every_problem(self) -> list[str]:
        """What is wrong and what is missing, once nothing more comes."""
        return self.problems + [f"missing tensor {key}" for key in self._missing]

    def finish(self) -> None:
        """Nothing more comes.

        Raises:
            ModelLoadError: listing every problem found.
        """
        if problems := self.every_problem():
            raise ModelLoadError(
                f"the weights in {self._source} do not fit the model:\n- " + "\n- ".join(problems)
            )


class StackedWeights(Checklist):
    """Host arrays of a whole model, filled by Hugging Face names.

    The arrays are the only copy: each tensor is cast and laid in its place as it is read.

    Args:
        norm_offset: added to the weights of norms.
    """

    def __init__(self, model: Model, source: str, *, norm_offset: float = 0.0) -> None:
        super().__init__(model, source)
        self._norm_offset = norm_offset
        self._arrays = {
            name: returnable_empty(spec.shape, spec.dtype)
            for name, spec in model.stacked_specs.items()
        }

    def put(self, key: str, tensor: np.ndarray) -> None:
        """Lay one tensor in its place, cast to the model's dtype."""
        target = self.tick(key, tensor.shape, tensor.dtype.name)
        if target is None:
            return
        array = self._arrays[target.name]
        place = target.place(array)
        if self._norm_offset and target.name.endswith("norm.weight"):
            tensor = tensor.astype(np.float32) + np.float32(self._norm_offset)
        with np.errstate(over="ignore"):
            # In blocks that fit the cache: numpy transposes whole arrays 8 times slower.
            for start in range(0, len(place), BLOCK_ROWS):
                block = slice(start, start + BLOCK_ROWS)
                place[block] = tensor[block]
        if array.dtype == np.float16 and not np.isfinite(place).all():
            self.problems.append(f"{key}: too large for float16; load with dtype bfloat16")

    def holds(self, key: str, tensor: Any) -> bool:
        """Whether a slice of a file is what has been laid in the place of ``key``."""
        target = self._targets[key]
        place = target.place(self._arrays[target.name])
        if tuple(tensor.get_shape()) != place.shape:
            return False
        num = len(place)
        blocks = (slice(at, min(at + BLOCK_ROWS, num)) for at in range(0, num, BLOCK_ROWS))
        return all((tensor[one].astype(place.dtype) == place[one]).all() for one in blocks)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of them, filled.

        Raises:
            ModelLoadError: listing every problem found.
        """
        self.finish()
        return self._arrays


def read_folder(model: Model, folder: Path, *, progress: bool = False) -> dict[str, np.ndarray]:
    """Weights of a Hugging Face folder, stacked, in the model's dtype.

    Raises:
        ModelLoadError: listing every missing, misshapen or unexpected tensor and unreadable file.
    """
    from tqdm import tqdm

    check_headers(model, folder).finish()
    offset = NORM_OFFSETS.get(model.config.family, 0.0)
    weights = StackedWeights(model, str(folder), norm_offset=offset)
    bar = tqdm(
        total=model.config.num_params, unit=" weights", unit_scale=True, disable=not progress
    )
    with bar:
        for path in weight_files(folder, weights.problems):
            for key, tensor in _tensors(path, weights.problems):
                weights.put(_plain(key), tensor)
                bar.update(tensor.size)
    if model.config.tie_embeddings:
        _check_tied(weights, folder)
    return weights.arrays()


def _check_tied(weights: StackedWeights, folder: Path) -> None:
    """An output projection that stands beside the embedding it is tied to must be the same."""
    for path in weight_files(folder, []):
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118, it is no dict
                if _plain(key) != "lm_head.weight":
                    continue
                head = file.get_slice(key)
                if not weights.holds("model.embed_tokens.weight", head):
                    weights.problems.append(
                        f"{key} is not the embedding, to which config.json ties it: set "
                        "tie_word_embeddings to false"
                    )


def check_headers(model: Model, folder: Path) -> Checklist:
    """What the headers of a folder's files say: all that is wrong, before any weight is read."""
    checklist = Checklist(model, str(folder))
    for path in weight_files(folder, checklist.problems):
        try:
            with safe_open(path, framework="numpy") as file:
                for key in file.keys():  # noqa: SIM118, it is no dict
                    tensor = file.get_slice(key)
                    checklist.tick(_plain(key), tuple(tensor.get_shape()), tensor.get_dtype())
        except (SafetensorError, OSError) as error:
            checklist.problems.append(_unreadable(path, error))
    return checklist


def weight_files(folder: Path, problems: list[str]) -> list[Path]:
    """The safetensors files of a folder; appends to ``problems`` what is missing."""
    index = folder / INDEX_FILE
    if (folder / WEIGHTS_FILE).exists():  # before an index, as transformers has it
        return [folder / WEIGHTS_FILE]
    if not index.exists():
        problems.append(f"missing file {WEIGHTS_FILE} (or {INDEX_FILE} and its shards)")
        return []
    try:
        shards = sorted({str(one) for one in json.loads(index.read_text())["weight_map"].values()})
    except (ValueError, KeyError, AttributeError, TypeError, OSError, RecursionError) as error:
        problems.append(f"{INDEX_FILE} cannot be read: {error!r}")
        return []
    problems += [
        f"missing shard {shard}; download it again"
        for shard in shards
        if not (folder / shard).exists()
    ]
    return [folder / shard for shard in shards if (folder / shard).exists()]


def _tensors(path: Path, problems: list[str]) -> Iterator[tuple[str, np.ndarray]]:
    try:
        with safe_open(path, framework="numpy") as file:
            keys = list(file.keys())
        while keys:
            # What was read stays in memory as long as the file is open: open it now and then anew.
            num_bytes = 0
            with safe_open(path, framework="numpy") as file:
                while keys and num_bytes < REOPEN_BYTES:
                    key = keys.pop(0)
                    tensor = file.get_tensor(key)
                    num_bytes += tensor.nbytes
                    yield key, tensor
    except (SafetensorError, OSError) as error:
        problems.append(_unreadable(path, error))


def _unreadable(path: Path, error: Exception) -> str:
    return f"{path.name} is truncated or corrupt, download it again: {error}"


def _plain(key: str) -> str:
    """A tensor's name without what a multimodal checkpoint puts before it."""
    for prefix, instead in PREFIXES.items():
        if key.startswith(prefix):
            return instead + key.removeprefix(prefix)
    return key


def _targets(model: Model) -> dict[str, _Target]:
    """Every Hugging Face tensor the model needs."""
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
                    key = f"{template.format(i=i, e=e)}.{kind}"
                    targets[key] = _Target(name, at, columns, is_projection)
    return targets


def _columns(config: ModelConfig, part: str, width: int) -> slice:
    """Outputs of a fused projection, this many wide, that a part fills."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "": slice(None),
        "q": slice(0, q),
        "k": slice(q, q + kv),
        "v": slice(q + kv, q + 2 * kv),
        "gate": slice(0, width // 2),
        "up": slice(width // 2, width),
    }[part]
