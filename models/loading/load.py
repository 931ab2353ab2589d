"""``load_model``: from a model's name to its weights on the devices."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax

from kvflow_jax.errors import CapacityError, ConfigError, ModelLoadError
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.dtypes import choose_dtype
from kvflow_jax.models.kernels import AUTO, choose_attention
from kvflow_jax.models.kernels.base import KernelTarget
from kvflow_jax.models.kernels.cpu.ops import native_ops
from kvflow_jax.models.loading import embedded, placement
from kvflow_jax.models.loading.checkpoint import CheckpointStore, default_cache_dir
from kvflow_jax.models.loading.gguf import GgufFile
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.hf_tensors import NORM_OFFSETS, header_problems
from kvflow_jax.models.loading.locate import download, find_local, is_hub_name, quoted
from kvflow_jax.models.loading.nan_check import check_finite
from kvflow_jax.models.loading.presets import PRESETS
from kvflow_jax.models.loading.random_params import random_params
from kvflow_jax.models.loading.safetensors_folder import FolderTensors, weight_files
from kvflow_jax.models.loading.weights import NamedWeights, WeightSource
from kvflow_jax.models.loading.weights_digest import weights_digest
from kvflow_jax.models.memory import free_device_bytes, free_host_bytes
from kvflow_jax.models.model import Model, Params
from kvflow_jax.models.ops import Ops, XlaOps
from kvflow_jax.models.sharding import Shards, shard_of
from kvflow_jax.models.tokenizer import TOKENIZER_FILES, Tokenizer

log = logging.getLogger(__name__)

DefineFn = Callable[[ModelConfig], Model]
PlaceFn = Callable[[Model, WeightSource], Params]
# Model, weights, tokenizer and version, read from files.
_Files = tuple[Model, Params, Tokenizer, str]


@dataclass(frozen=True)
class LoadedModel:
    """A model definition, its weights on the devices, and its tokenizer.

    Attributes:
        tokenizer: None for random weights of a shape without one.
        name: as given to ``load_model``.
        version: digest of the weights' files, or the seed of random weights.
        shards: the devices that share the model; None if it is whole on one device.
    """

    model: Model
    params: Params
    tokenizer: Tokenizer | None
    name: str
    version: str
    shards: Shards | None = None

    @property
    def config(self) -> ModelConfig:
        return self.model.config


def load_model(
    name_or_path: str,
    *,
    dtype: str = "auto",
    cache_dir: Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
    ops: Ops | None = None,
    attention: str = AUTO,
    page_size: int = 16,
    max_model_len: int | None = None,
    tensor_parallel: int = 1,
    check_model: Callable[[Model], None] = lambda model: None,
    progress: bool = True,
) -> LoadedModel:
    """Load a model onto the default device, or onto several.

    Args:
        name_or_path: "smollm2-135m", a Hugging Face folder, a .gguf file or a folder with one,
            or a name on the Hugging Face Hub. With ``random_weights`` also one of ``PRESETS``.
        dtype: of the weights: float32, bfloat16 or float16; "auto" is the best for the device and
            the model, see ``models.dtypes``.
        cache_dir: cache of dequantised weights; ``default_cache_dir()`` if None.
        random_weights: initialise the weights on the device from ``seed``; only the config is read
            from files, and the tokenizer if there is one.
        ops: how one device computes the model; None chooses by platform, see ``default_ops``.
            Ignored with ``tensor_parallel`` above 1, where each device uses XLA.
        attention: the attention kernel; "auto" is the best supported, see ``models.kernels``.
        page_size: of the KV pool that attention will read, in tokens.
        max_model_len: longest sequence that will be served, in tokens; None is the model's
            maximum. Some models are computed differently up to a length, see
            ``RopeConfig.for_len``.
        tensor_parallel: number of devices that share the model, see ``models.sharding``.
        check_model: called with the definition before weights are read or initialised. Processes
            that share the model compare their definitions in it, and raise if they differ.
        progress: show a progress bar.

    Raises:
        ModelLoadError: listing every problem found, and what to do.
        CapacityError: the weights need more memory than is free; says how much more.
        ConfigError: the attention kernel does not support this model on this platform, or the
            model cannot be divided among so many devices.
    """
    cache_dir = cache_dir or default_cache_dir()
    if tensor_parallel < 1:
        raise ConfigError(f"tensor_parallel must be at least 1, got {tensor_parallel}")
    shards = Shards.of_devices(tensor_parallel) if tensor_parallel > 1 else None

    def define(config: ModelConfig) -> Model:
        config, device = _for_len(config, max_model_len), jax.local_devices()[0]
        weights_dtype = choose_dtype(dtype, config, device)
        if shards is None:
            device_ops = ops or default_ops(config, weights_dtype, cache_dir, attention, page_size)
        else:
            shard = shard_of(config, shards.num_shards)
            target = KernelTarget.local(shard, weights_dtype, page_size)
            device_ops = XlaOps(choose_attention(attention, target), device.platform)
        model = Model.build(config, weights_dtype, ops=device_ops)
        log.info("dtype of weights and KV cache: %s", weights_dtype)
        _check_memory(model, device, 1 if shards is None else shards.num_shards)
        check_model(model)
        return model

    def place(model: Model, source: WeightSource) -> Params:
        return placement.place(model, source, shards, progress=progress)

    if random_weights:
        config, tokenizer = _read_shape(name_or_path)
        model = define(config)
        params = random_params(model, seed, shards)
        return LoadedModel(model, params, tokenizer, name_or_path, f"random-{seed}", shards)
    if name_or_path == embedded.NAME:
        model, params, tokenizer, version = _read_embedded(define, place, cache_dir, progress)
    elif (path := find_local(name_or_path) or download(name_or_path)).is_dir():
        model, params, tokenizer, version = _read_folder(path, define, place)
    else:
        model, params, tokenizer, version = _read_gguf(path, define, place, cache_dir, progress)
    check_finite(params, model.config, name_or_path)
    return LoadedModel(model, params, tokenizer, name_or_path, version, shards)


def default_ops(
    config: ModelConfig,
    dtype: str,
    cache_dir: Path,
    attention: str = AUTO,
    page_size: int = 16,
) -> Ops:
    """Return the best ops of this platform: native kernels on a CPU that has them, else XLA.

    Args:
        cache_dir: cache of the kernels that are built on first use.
        attention: a kernel other than "auto" is combined with XLA for all else.
        page_size: of the KV pool, in tokens.

    Raises:
        ConfigError: the attention kernel does not support this model on this platform.
    """
    platform = jax.default_backend()
    if platform == "cpu" and attention == AUTO and (ops := native_ops(config, dtype, cache_dir)):
        log.info("attention on cpu: native kernels")
        return ops
    attend = choose_attention(attention, KernelTarget.local(config, dtype, page_size))
    return XlaOps(attend, platform)


def _for_len(config: ModelConfig, max_model_len: int | None) -> ModelConfig:
    """Return ``ModelConfig.for_len``; warn if short prompts are computed with long factors."""
    if max_model_len is not None:
        config = config.for_len(max_model_len)
    rope = config.rope
    if rope.factors != rope.short_factors:
        log.warning(
            "prompts of up to %d tokens are computed with LongRoPE's long factors, too: cached "
            "blocks stay valid only if all prompts use one set; for the short factors lower "
            "max_model_len (--max-model-len) to %d or less",
            *(rope.original_max_len, rope.original_max_len),
        )
    return config


def _check_memory(model: Model, device: jax.Device, num_devices: int) -> None:
    """Raise CapacityError if the weights do not fit in free memory; called before reading them."""
    nbytes = sum(spec.size * spec.dtype.itemsize for spec in model.stacked_specs.values())
    free = free_device_bytes(device)
    needed, where = nbytes // num_devices, f"on each of {num_devices} {device.device_kind}"
    remedies = ["a smaller dtype (--dtype bfloat16)"] if model.dtype == "float32" else []
    # The device uses the host's memory.
    if free is None:
        free, needed, where = free_host_bytes(), nbytes, "on the host"
    else:
        remedies.append("more devices (--tensor-parallel)")
    advice = " or ".join(remedies or ["a smaller model"])
    if needed > free:
        raise CapacityError(
            f"the weights need {needed / 1e9:.1f} GB in {model.dtype}, but only "
            f"{free / 1e9:.1f} GB are free {where} ({(needed - free) / 1e9:.1f} GB short); "
            f"use {advice}"
        )


def _read_shape(name_or_path: str) -> tuple[ModelConfig, Tokenizer | None]:
    """Return the config and the tokenizer of a named shape, a local model or a Hub model."""
    if name_or_path in PRESETS:
        return PRESETS[name_or_path], None
    path = find_local(name_or_path)
    if path is None and not is_hub_name(name_or_path):
        raise ModelLoadError(
            f"no model {quoted(name_or_path)} for random weights; give one of {', '.join(PRESETS)}"
            ", a folder with a config.json, a .gguf file, or a Hugging Face Hub name 'owner/name'"
        )
    folder = path or download(name_or_path, weights=False)
    if not folder.is_dir():
        return _gguf_shape(GgufFile(folder))
    config = read_config(_read_json(folder / "config.json"))
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return config, None
    tokenizer = Tokenizer.from_folder(folder)
    return config.with_eos(tokenizer.eos_token_ids), tokenizer


def _gguf_shape(file: GgufFile) -> tuple[ModelConfig, Tokenizer]:
    config = file.config()
    tokenizer = Tokenizer(file.tokenizer(), config.eos_token_ids)
    return config.with_eos(tokenizer.eos_token_ids), tokenizer


def _read_embedded(define: DefineFn, place: PlaceFn, cache_dir: Path, progress: bool) -> _Files:
    @cache
    def file() -> GgufFile:
        # Takes seconds: called only if the cache has no checkpoint.
        return GgufFile(embedded.locate())

    model = define(embedded.CONFIG)
    # The checkpoint has a tokenizer, which that of the same file loaded by its path has not.
    key = "embedded-" + embedded.SHA256
    params, path = CheckpointStore(cache_dir).restore_or_convert(
        model,
        key,
        convert=lambda: _weights_of(file(), model),
        place=partial(place, model),
        save_extras=lambda folder: file().tokenizer().save_pretrained(folder / "tokenizer"),
        progress=progress,
    )
    eos_token_ids = model.config.eos_token_ids
    if path is None:
        return model, params, Tokenizer(file().tokenizer(), eos_token_ids), key
    return model, params, Tokenizer.from_folder(path / "tokenizer", eos_token_ids), key


def _weights_of(file: GgufFile, model: Model) -> NamedWeights:
    return NamedWeights(model, file.tensors(model.config))


def _read_gguf(
    path: Path, define: DefineFn, place: PlaceFn, cache_dir: Path, progress: bool
) -> _Files:
    """Load a .gguf file; cache its dequantised weights.

    Dequantising takes minutes, reading the result takes seconds.
    """
    file = GgufFile(path)
    config, tokenizer = _gguf_shape(file)
    model = define(config)
    with path.open("rb") as content:
        key = hashlib.file_digest(content, "sha256").hexdigest()
    params, _ = CheckpointStore(cache_dir).restore_or_convert(
        model,
        key,
        convert=lambda: _weights_of(file, model),
        place=partial(place, model),
        progress=progress,
    )
    return model, params, tokenizer, key


def _read_folder(folder: Path, define: DefineFn, place: PlaceFn) -> _Files:
    """Load a Hugging Face folder; one error lists the problems of all of its files."""
    problems: list[str] = []
    config = tokenizer = None
    try:
        config = read_config(_read_json(folder / "config.json"))
    except ModelLoadError as error:
        problems.append(str(error))
    try:
        tokenizer = Tokenizer.from_folder(folder)
    except ModelLoadError as error:
        problems.append(str(error))
    if config is None or tokenizer is None:
        if config is None:
            weight_files(folder, problems)
        else:
            tensors = FolderTensors(folder)
            problems += tensors.problems + header_problems(Model.build(config), tensors.headers)
        raise ModelLoadError(f"cannot load {folder}:\n- " + "\n- ".join(problems))
    model = define(config.with_eos(tokenizer.eos_token_ids))
    tensors = FolderTensors(folder)
    offset = NORM_OFFSETS.get(config.family, 0.0)
    params = place(model, NamedWeights(model, tensors, norm_offset=offset))
    return model, params, tokenizer, weights_digest(tensors.files)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ModelLoadError(
            f"missing file {path}; give a Hugging Face folder with config.json and safetensors "
            "files, or a .gguf file"
        ) from error
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is not JSON, download it again: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} is not a JSON object, download it again")
    return value
