"""One call from a name to a model that can run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax

from kvflow_jax.errors import CapacityError, ConfigError, ModelLoadError
from kvflow_jax.models import embedded, placing
from kvflow_jax.models.checkpoint import CheckpointStore, default_cache_dir
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.folder import FolderTensors, weight_files
from kvflow_jax.models.gguf import GgufFile
from kvflow_jax.models.hf_tensors import NORM_OFFSETS, problems_of
from kvflow_jax.models.hub import download, is_hub_name
from kvflow_jax.models.kernels import AUTO, choose_attention
from kvflow_jax.models.kernels.base import Case
from kvflow_jax.models.memory import free_device_bytes, free_host_bytes
from kvflow_jax.models.model import Model, Params
from kvflow_jax.models.native.ops import native_ops
from kvflow_jax.models.ops import Ops, XlaOps
from kvflow_jax.models.shapes import SHAPES
from kvflow_jax.models.sharding import Shards, shard_of
from kvflow_jax.models.tokenizer import TOKENIZER_FILES, Tokenizer
from kvflow_jax.models.version import version_of
from kvflow_jax.models.weights import NamedWeights, WeightSource

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
    dtype: str = "float32",
    cache_dir: Path | None = None,
    random_weights: bool = False,
    seed: int = 0,
    ops: Ops | None = None,
    attention: str = AUTO,
    page_size: int = 16,
    tensor_parallel: int = 1,
    progress: bool = True,
) -> LoadedModel:
    """Load a model onto the default device, or onto several.

    Args:
        name_or_path: "smollm2-135m", a Hugging Face folder, a .gguf file or a folder with one,
            or a name on the Hugging Face Hub. With ``random_weights`` also one of ``SHAPES``.
        dtype: of the weights: float32, bfloat16 or float16.
        cache_dir: where what was dequantised is kept; ``default_cache_dir()`` if None.
        random_weights: make the weights up from ``seed``, on the device; of files only those are
            read that say what the model is, and the tokenizer where there is one.
        ops: how one device computes the model; None leaves it to the platform, see
            ``default_ops``. Of several, each computes its part by XLA.
        attention: the kernel for it, "auto" for the best that serves; see ``models.kernels``.
        page_size: of the pool that it will read, tokens.
        tensor_parallel: devices that share the model, see ``models.sharding``.

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
        if shards is None:
            chosen = ops or default_ops(config, dtype, cache_dir, attention, page_size)
            model = Model.build(config, dtype, ops=chosen)
            _check_room(model, jax.local_devices()[0], 1)
            return model
        part = shard_of(config, shards.num)
        attend = choose_attention(attention, Case(jax.default_backend(), part, dtype, page_size))
        model = Model.build(config, dtype, ops=XlaOps(attend))
        _check_room(model, jax.local_devices()[0], shards.num)
        return model

    def place(model: Model, source: WeightSource) -> Params:
        return placing.place(model, source, shards, progress=progress)

    if random_weights:
        config, tokenizer = _read_shape(name_or_path)
        model = define(config)
        params = model.init(seed) if shards is None else shards.init(model, seed)
        return LoadedModel(model, params, tokenizer, name_or_path, f"random-{seed}", shards)
    path = Path(name_or_path).expanduser()
    if name_or_path == embedded.NAME:
        model, params, tokenizer, version = _read_embedded(define, place, cache_dir, progress)
    elif file := _gguf_file(path):
        model, params, tokenizer, version = _read_gguf(file, define, place, cache_dir, progress)
    else:
        folder = path if path.is_dir() else download(name_or_path)
        model, params, tokenizer, version = _read_folder(folder, define, place)
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
        return ops
    attend = choose_attention(attention, Case(platform, config, dtype, page_size))
    return XlaOps(attend, on_cpu=platform == "cpu")


def _check_room(model: Model, device: jax.Device, num_devices: int) -> None:
    """Raise CapacityError where the weights do not fit, before any is read."""
    nbytes = sum(spec.size * spec.dtype.itemsize for spec in model.stacked_specs.values())
    free = free_device_bytes(device)
    needed, where = nbytes // num_devices, f"on each of {num_devices} {device.device_kind}"
    advice = "a smaller dtype (--dtype bfloat16) or more devices (--tensor-parallel) may help"
    if free is None:  # it shares the host's
        free, needed, where = free_host_bytes(), nbytes, "on the host"
        advice = "a smaller dtype (--dtype bfloat16) may help"
    if needed > free:
        raise CapacityError(
            f"the weights take {needed / 1e9:.1f} GB in {model.dtype}, {free / 1e9:.1f} GB are "
            f"free {where}, {(needed - free) / 1e9:.1f} too few; {advice}"
        )


def _read_shape(name_or_path: str) -> tuple[ModelConfig, Tokenizer | None]:
    """All of a model but its weights."""
    if name_or_path in SHAPES:
        return SHAPES[name_or_path], None
    path = Path(name_or_path).expanduser()
    if file := _gguf_file(path):
        return _shape_of(GgufFile(file))
    if not path.is_dir() and not is_hub_name(name_or_path):
        raise ModelLoadError(
            f"no shape {name_or_path!r} for random weights; named shapes: {', '.join(SHAPES)}; "
            "or give a folder with a config.json, a .gguf file, or a Hugging Face Hub name"
        )
    folder = path if path.is_dir() else download(name_or_path, weights=False)
    config = ModelConfig.from_hf(_read_json(folder / "config.json"))
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
    if not (path / "tokenizer").exists():  # it could not be kept
        return model, params, Tokenizer(file().tokenizer(), ends), key
    return model, params, Tokenizer.from_folder(path / "tokenizer", ends), key


def _weights_of(file: GgufFile, model: Model) -> NamedWeights:
    return NamedWeights(model, file.tensors(model.config))


def _gguf_file(path: Path) -> Path | None:
    """The .gguf file that a path means, None where it means none."""
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelLoadError(f"there is no file {path}")
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ModelLoadError(f"{path} holds several models, give one of its files: {names}")
    return files[0] if files else None


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
        config = ModelConfig.from_hf(_read_json(folder / "config.json"))
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
