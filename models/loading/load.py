"""One call from a name to a model that can run."""

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
from kvflow_jax.models.kernels.base import Case
from kvflow_jax.models.kernels.cpu.ops import native_ops
from kvflow_jax.models.loading import embedded, placement
from kvflow_jax.models.loading.checkpoint import CheckpointStore, default_cache_dir
from kvflow_jax.models.loading.gguf import GgufFile
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.hf_tensors import NORM_OFFSETS, problems_of
from kvflow_jax.models.loading.locate import download, find_local, is_hub_name, quoted
from kvflow_jax.models.loading.nan_check import check_finite
from kvflow_jax.models.loading.presets import SHAPES
from kvflow_jax.models.loading.random_params import random_params
from kvflow_jax.models.loading.safetensors_folder import FolderTensors, weight_files
from kvflow_jax.models.loading.weights import NamedWeights, WeightSource
from kvflow_jax.models.loading.weights_digest import version_of
from kvflow_jax.models.memory import free_device_bytes, free_host_bytes
from kvflow_jax.models.model import Model, Params
from kvflow_jax.models.ops import Ops, XlaOps
from kvflow_jax.models.sharding import Shards, shard_of
from kvflow_jax.models.tokenizer import TOKENIZER_FILES, Tokenizer

log = logging.getLogger(__name__)

Define = Callable[[ModelConfig], Model]
Place = Callable[[Model, WeightSource], Params]
_Read = tuple[Model, Params, Tokenizer, str]  # what files give, and their version


@dataclass(frozen=True)
class LoadedModel:
    """A definition, its weights on the device, and the tokenizer, None for a shape without one.

    Attributes:
        version: names the weights by their content.
        shards: the devices that share it; None: it is whole on one.
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
    agree: Callable[[Model], None] = lambda model: None,
    progress: bool = True,
) -> LoadedModel:
    """Load a model onto the default device, or onto several.

    Args:
        name_or_path: "smollm2-135m", a Hugging Face folder, a .gguf file or a folder with one,
            or a name on the Hugging Face Hub. With ``random_weights`` also one of ``SHAPES``.
        dtype: of the weights: float32, bfloat16 or float16; "auto" is what the device computes the
            model best in, see ``models.dtypes``.
        cache_dir: where what was dequantised is kept; ``default_cache_dir()`` if None.
        random_weights: make the weights up from ``seed``, on the device; of files only those are
            read that say what the model is, and the tokenizer where there is one.
        ops: how one device computes the model; None leaves it to the platform, see
            ``default_ops``. Of several, each computes its part by XLA.
        attention: the kernel for it, "auto" for the best that serves; see ``models.kernels``.
        page_size: of the pool that it will read, tokens.
        max_model_len: longest sequence that is to be served, tokens; None: the model's. Some
            models are others up to a length, see ``RopeConfig.for_len``.
        tensor_parallel: devices that share the model, see ``models.sharding``.
        agree: told what the model is before weights are read or made: of processes that share it,
            each refuses there one that is not the others'.

    Raises:
        ModelLoadError: listing every problem found, each with what to do.
        CapacityError: the weights do not fit, by how much, and what helps.
        ConfigError: attention that does not serve this model here, or a model that cannot be cut
            in so many parts.
    """
    cache_dir = cache_dir or default_cache_dir()
    if tensor_parallel < 1:
        raise ConfigError(f"tensor_parallel must be at least 1, got {tensor_parallel}")
    shards = Shards.over(tensor_parallel) if tensor_parallel > 1 else None

    def define(config: ModelConfig) -> Model:
        config, device = _for_len(config, max_model_len), jax.local_devices()[0]
        chosen = choose_dtype(dtype, config, device)
        if shards is None:
            own = ops or default_ops(config, chosen, cache_dir, attention, page_size)
        else:
            case = Case.here(shard_of(config, shards.num), chosen, page_size)
            own = XlaOps(choose_attention(attention, case), device.platform)
        model = Model.build(config, chosen, ops=own)
        log.info("weights and KV in %s", chosen)
        _check_room(model, device, 1 if shards is None else shards.num)
        agree(model)
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
    """What this platform computes a model best with: on CPU our kernels where they can, else XLA.

    Args:
        cache_dir: where kernels that have to be built first are kept.
        attention: named, it is that one, and XLA does all else.

    Raises:
        ConfigError: attention that does not serve this model here.
    """
    platform = jax.default_backend()
    if platform == "cpu" and attention == AUTO and (ops := native_ops(config, dtype, cache_dir)):
        log.info("attention on cpu: kernels of its own")
        return ops
    attend = choose_attention(attention, Case.here(config, dtype, page_size))
    return XlaOps(attend, platform)


def _for_len(config: ModelConfig, max_model_len: int | None) -> ModelConfig:
    """See ``ModelConfig.for_len``; says so where short prompts are computed as long ones are."""
    if max_model_len is not None:
        config = config.for_len(max_model_len)
    rope = config.rope
    if rope.factors != rope.short_factors:
        log.warning(
            "prompts of up to %d tokens are computed with LongRoPE's long factors, too: one set "
            "serves all, so that cached blocks stay valid; for the short factors lower "
            "max_model_len (--max-model-len) to %d or less",
            *(rope.original_max_len, rope.original_max_len),
        )
    return config


def _check_room(model: Model, device: jax.Device, num_devices: int) -> None:
    """Raise CapacityError where the weights do not fit, before any is read."""
    nbytes = sum(spec.size * spec.dtype.itemsize for spec in model.stacked_specs.values())
    free = free_device_bytes(device)
    needed, where = nbytes // num_devices, f"on each of {num_devices} {device.device_kind}"
    may_help = ["a smaller dtype (--dtype bfloat16)"] if model.dtype == "float32" else []
    if free is None:  # it shares the host's
        free, needed, where = free_host_bytes(), nbytes, "on the host"
    else:
        may_help.append("more devices (--tensor-parallel)")
    advice = " or ".join(may_help or ["a smaller model"])
    if needed > free:
        raise CapacityError(
            f"the weights take {needed / 1e9:.1f} GB in {model.dtype}, {free / 1e9:.1f} GB are "
            f"free {where}, {(needed - free) / 1e9:.1f} too few; {advice} may help"
        )


def _read_shape(name_or_path: str) -> tuple[ModelConfig, Tokenizer | None]:
    """All of a model but its weights."""
    if name_or_path in SHAPES:
        return SHAPES[name_or_path], None
    path = find_local(name_or_path)
    if path is None and not is_hub_name(name_or_path):
        raise ModelLoadError(
            f"no shape {quoted(name_or_path)} for random weights; named shapes: "
            f"{', '.join(SHAPES)}; or give a folder with a config.json, a .gguf file, or a "
            "Hugging Face Hub name"
        )
    folder = path or download(name_or_path, weights=False)
    if not folder.is_dir():
        return _shape_of(GgufFile(folder))
    config = read_config(_read_json(folder / "config.json"))
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        return config, None
    tokenizer = Tokenizer.from_folder(folder)
    return config.with_eos(tokenizer.eos_token_ids), tokenizer


def _shape_of(file: GgufFile) -> tuple[ModelConfig, Tokenizer]:
    config = file.config()
    tokenizer = Tokenizer(file.tokenizer(), config.eos_token_ids)
    return config.with_eos(tokenizer.eos_token_ids), tokenizer


def _read_embedded(define: Define, place: Place, cache_dir: Path, progress: bool) -> _Read:
    @cache
    def file() -> GgufFile:
        return GgufFile(embedded.locate())  # which takes seconds: only if need be

    model = define(embedded.CONFIG)
    key = "embedded-" + embedded.SHA256  # with its tokenizer, which other files' have not
    params, path = CheckpointStore(cache_dir).restore_or_convert(
        model,
        key,
        convert=lambda: _weights_of(file(), model),
        place=partial(place, model),
        save_beside=lambda beside: file().tokenizer().save_pretrained(beside / "tokenizer"),
        progress=progress,
    )
    ends = model.config.eos_token_ids
    if path is None:
        return model, params, Tokenizer(file().tokenizer(), ends), key
    return model, params, Tokenizer.from_folder(path / "tokenizer", ends), key


def _weights_of(file: GgufFile, model: Model) -> NamedWeights:
    return NamedWeights(model, file.tensors(model.config))


def _read_gguf(path: Path, define: Define, place: Place, cache_dir: Path, progress: bool) -> _Read:
    """Dequantised once and kept: that takes minutes where reading the result takes seconds."""
    file = GgufFile(path)
    config, tokenizer = _shape_of(file)
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


def _read_folder(folder: Path, define: Define, place: Place) -> _Read:
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
            problems += tensors.problems + problems_of(Model.build(config), tensors.headers)
        raise ModelLoadError(f"cannot load {folder}:\n- " + "\n- ".join(problems))
    model = define(config.with_eos(tokenizer.eos_token_ids))
    tensors = FolderTensors(folder)
    offset = NORM_OFFSETS.get(config.family, 0.0)
    params = place(model, NamedWeights(model, tensors, norm_offset=offset))
    return model, params, tokenizer, version_of(tensors.files)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ModelLoadError(f"missing file {path}") from error
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path} holds no JSON object")
    return value
