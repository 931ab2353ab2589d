"""Weights of a Hugging Face folder, read tensor by tensor into stacked host arrays."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.model import Model

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Hugging Face name without its ".weight" or ".bias" -> (our name, part of a fused projection).
# "{i}" is the layer; layers are stacked in ours.
NAMES = {
    "model.embed_tokens": ("embed", ""),
    "model.norm": ("final_norm", ""),
    "lm_head": ("lm_head", ""),
    "model.layers.{i}.input_layernorm": ("layers.input_norm", ""),
    "model.layers.{i}.self_attn.q_proj": ("layers.attention.qkv_proj", "q"),
    "model.layers.{i}.self_attn.k_proj": ("layers.attention.qkv_proj", "k"),
    "model.layers.{i}.self_attn.v_proj": ("layers.attention.qkv_proj", "v"),
    "model.layers.{i}.self_attn.o_proj": ("layers.attention.o_proj", ""),
    "model.layers.{i}.post_attention_layernorm": ("layers.post_attention_norm", ""),
    "model.layers.{i}.mlp.gate_proj": ("layers.mlp.gate_up_proj", "gate"),
    "model.layers.{i}.mlp.up_proj": ("layers.mlp.gate_up_proj", "up"),
    "model.layers.{i}.mlp.down_proj": ("layers.mlp.down_proj", ""),
}

# Tensors that files may carry and models do not need: buffers of old releases.
IGNORED = re.compile(r".*\.rotary_emb\.inv_freq")

BLOCK_ROWS = 128
ALIGNMENT = 64  # bytes; XLA's CPU client uses host memory in place only where it is aligned so


@dataclass(frozen=True, slots=True)
class _Target:
    """Where a tensor goes: these columns of this layer of a stacked array.

    Hugging Face keeps projections as [out, in], ours are [in, out].
    """

    name: str
    layer: int | None
    columns: slice
    transposed: bool

    def place(self, array: np.ndarray) -> np.ndarray:
        """The view of our array that has the tensor's own orientation."""
        view = (array if self.layer is None else array[self.layer])[..., self.columns]
        return view.T if self.transposed else view


class StackedWeights:
    """Host arrays of a whole model, filled by Hugging Face names; collects what is wrong.

    The arrays are the only copy: each tensor is cast and laid in its place as it is read.
    """

    def __init__(self, model: Model, source: str) -> None:
        self.problems: list[str] = []
        self._source = source
        self._tied = model.config.tie_embeddings
        self._targets = _targets(model)
        self._missing = dict.fromkeys(self._targets)  # an ordered set
        self._arrays = {
            name: _aligned_empty(spec.shape, spec.dtype)
            for name, spec in model.stacked_specs.items()
        }

    def put(self, key: str, tensor: np.ndarray) -> None:
        """Lay one tensor in its place, cast to the model's dtype."""
        target = self._targets.get(key)
        if target is None:
            # With tied embeddings the output projection is the embedding, saved twice.
            if not IGNORED.fullmatch(key) and not (self._tied and key == "lm_head.weight"):
                self.problems.append(f"unexpected tensor {key} {list(tensor.shape)}")
            return
        self._missing.pop(key, None)
        array = self._arrays[target.name]
        place = target.place(array)
        if place.shape != tensor.shape:
            self.problems.append(
                f"{key}: expected shape {list(place.shape)}, found {list(tensor.shape)}"
            )
        elif not np.issubdtype(tensor.dtype, np.floating) and tensor.dtype.name != "bfloat16":
            self.problems.append(
                f"{key}: expected float32, bfloat16 or float16, found {tensor.dtype}"
            )
        else:
            with np.errstate(over="ignore"):
                # In blocks that fit the cache: numpy transposes whole arrays 8 times slower.
                for start in range(0, len(place), BLOCK_ROWS):
                    block = slice(start, start + BLOCK_ROWS)
                    place[block] = tensor[block]
            if array.dtype == np.float16 and not np.isfinite(place).all():
                self.problems.append(f"{key}: too large for float16; load with dtype bfloat16")

    def finish(self) -> dict[str, np.ndarray]:
        """The filled arrays.

        Raises:
            ModelLoadError: listing every problem found.
        """
        unread = [f"missing tensor {key}" for key in self._missing]
        if problems := self.problems + unread:
            raise ModelLoadError(
                f"the weights in {self._source} do not fit the model:\n- " + "\n- ".join(problems)
            )
        return self._arrays


def read_folder(model: Model, folder: Path, *, progress: bool = False) -> dict[str, np.ndarray]:
    """Weights of a Hugging Face folder, stacked, in the model's dtype.

    Raises:
        ModelLoadError: listing every missing, misshapen or unexpected tensor and unreadable file.
    """
    from tqdm import tqdm

    weights = StackedWeights(model, str(folder))
    bar = tqdm(
        total=model.config.num_params, unit=" weights", unit_scale=True, disable=not progress
    )
    with bar:
        for path in weight_files(folder, weights.problems):
            for key, tensor in _tensors(path, weights.problems):
                weights.put(key, tensor)
                bar.update(tensor.size)
    return weights.finish()


def weight_files(folder: Path, problems: list[str]) -> list[Path]:
    """The safetensors files of a folder; appends to ``problems`` what is missing."""
    index = folder / INDEX_FILE
    if not index.exists():
        if (folder / WEIGHTS_FILE).exists():
            return [folder / WEIGHTS_FILE]
        problems.append(f"missing file {WEIGHTS_FILE} (or {INDEX_FILE} and its shards)")
        return []
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
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
            for key in file.keys():  # noqa: SIM118 (not a dict)
                yield key, file.get_tensor(key)
    except (SafetensorError, OSError) as error:
        problems.append(f"{path.name} is truncated or corrupt, download it again: {error}")


def _targets(model: Model) -> dict[str, _Target]:
    """Every Hugging Face tensor the model needs."""
    targets = {}
    for template, (name, part) in NAMES.items():
        for kind in ("weight", "bias"):
            if f"{name}.{kind}" not in model.stacked_specs:
                continue
            layers = range(model.config.num_layers) if "{i}" in template else [None]
            for layer in layers:
                key = f"{template.format(i=layer)}.{kind}"
                columns = _columns(model.config, part)
                targets[key] = _Target(f"{name}.{kind}", layer, columns, name.endswith("_proj"))
    return targets


def _columns(config: ModelConfig, part: str) -> slice:
    """Outputs of a fused projection that a part fills."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    f = config.intermediate_size
    return {
        "": slice(None),
        "q": slice(0, q),
        "k": slice(q, q + kv),
        "v": slice(q + kv, q + 2 * kv),
        "gate": slice(0, f),
        "up": slice(f, 2 * f),
    }[part]


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    nbytes = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + nbytes].view(dtype).reshape(shape)
