"""``load_model``: from a model's name to its weights on the devices."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from kvflow_jax.errors import ConfigError, ModelLoadError
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.families import FAMILIES
from kvflow_jax.models.kernels import AUTO
from kvflow_jax.models.loading import embedded, placement
from kvflow_jax.models.loading.builder import ModelBuilder
from kvflow_jax.models.loading.cache_folder import default_cache_dir
from kvflow_jax.models.loading.checkpoint import CheckpointStore
from kvflow_jax.models.loading.compressed_tensors import ScaledTensors
from kvflow_jax.models.loading.gguf import GgufFile
from kvflow_jax.models.loading.hf_config import read_config_file
from kvflow_jax.models.loading.locate import download, find_local
from kvflow_jax.models.loading.nan_check import check_finite
from kvflow_jax.models.loading.random_params import random_params
from kvflow_jax.models.loading.safetensors_folder import FolderTensors, weight_files
from kvflow_jax.models.loading.shape import read_gguf_shape, read_shape
from kvflow_jax.models.loading.weights import NamedWeights, WeightSource, tensor_problems
from kvflow_jax.models.loading.weights_digest import weights_digest
from kvflow_jax.models.model import Model, Params
from kvflow_jax.models.ops import Ops
from kvflow_jax.models.sharding import Shards
from kvflow_jax.models.tokenizer import Tokenizer


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
    quantize: str = AUTO,
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
        quantize: "int8" and "int4" keep matrices in 8 or 4 bits, "int4" embeddings in 8. Then
            ``dtype`` is that of the KV cache. "none" keeps them in ``dtype``. "auto" is that of
            a .gguf file which is quantised, see ``GgufFile.quantization``, where the CPU kernels
            compute the model, else "none".
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
    builder = ModelBuilder(
        dtype, quantize, cache_dir, ops, attention, page_size, max_model_len, shards, check_model
    )
    if random_weights:
        config, tokenizer = read_shape(name_or_path)
        model = builder.build(config)
        params = random_params(model, seed, shards)
        return LoadedModel(model, params, tokenizer, name_or_path, f"random-{seed}", shards)
    loader = _Loader(name_or_path, builder, CheckpointStore(cache_dir), progress)
    if name_or_path == embedded.NAME:
        loaded = loader.load_embedded()
    elif (path := find_local(name_or_path) or download(name_or_path)).is_dir():
        loaded = loader.load_folder(path)
    else:
        loaded = loader.load_gguf(path)
    check_finite(loaded.params, loaded.config, name_or_path, loaded.model.ops)
    return loaded


@dataclass(frozen=True)
class _Loader:
    """Reads the files of a model, a method for each form of them."""

    name: str
    builder: ModelBuilder
    store: CheckpointStore
    progress: bool

    def load_embedded(self) -> LoadedModel:
        @cache
        def file() -> GgufFile:
            # Takes seconds: called only if the cache has no checkpoint.
            return GgufFile(embedded.locate())

        model = self.builder.build(embedded.CONFIG)
        # The checkpoint has a tokenizer, which that of the same file loaded by its path has not.
        key = "embedded-" + embedded.SHA256
        params, path = self.store.restore_or_convert(
            model,
            key,
            convert=lambda: NamedWeights(model, file().tensors(model)),
            place=partial(self._place, model),
            save_extras=lambda folder: file().tokenizer().save_pretrained(folder / "tokenizer"),
            progress=self.progress,
        )
        eos_token_ids = model.config.eos_token_ids
        if path is None:
            tokenizer = Tokenizer(file().tokenizer(), eos_token_ids)
        else:
            tokenizer = Tokenizer.from_folder(path / "tokenizer", eos_token_ids)
        return self._loaded(model, params, tokenizer, key)

    def load_gguf(self, path: Path) -> LoadedModel:
        """Load a .gguf file; cache its dequantised weights.

        Dequantising takes minutes, reading the result takes seconds.
        """
        file = GgufFile(path)
        config, tokenizer = read_gguf_shape(file)
        model = self.builder.build(config, file.quantization)
        key = _digest(file.paths)
        params, _ = self.store.restore_or_convert(
            model,
            key,
            convert=lambda: NamedWeights(model, file.tensors(model)),
            place=partial(self._place, model),
            progress=self.progress,
        )
        return self._loaded(model, params, tokenizer, key)

    def load_folder(self, folder: Path) -> LoadedModel:
        """Load a Hugging Face folder; one error lists the problems of all of its files."""
        problems: list[str] = []
        config = tokenizer = None
        try:
            config = read_config_file(folder)
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
                scaled = ScaledTensors(FolderTensors(folder))
                problems += tensor_problems(Model.build(config), scaled)
            # The tokenizer reads config.json, too: a fault of that is one problem.
            problems = list(dict.fromkeys(problems))
            raise ModelLoadError(f"cannot load {folder}:\n- " + "\n- ".join(problems))
        model = self.builder.build(config.with_eos(tokenizer.eos_token_ids))
        tensors = FolderTensors(folder)
        norm_offset = FAMILIES[config.family].norm_offset
        weights = NamedWeights(model, ScaledTensors(tensors), norm_offset=norm_offset)
        params = self._place(model, weights)
        return self._loaded(model, params, tokenizer, weights_digest(tensors.files))

    def _place(self, model: Model, source: WeightSource) -> Params:
        return placement.place(model, source, self.builder.shards, progress=self.progress)

    def _loaded(
        self, model: Model, params: Params, tokenizer: Tokenizer, version: str
    ) -> LoadedModel:
        return LoadedModel(model, params, tokenizer, self.name, version, self.builder.shards)


def _digest(paths: list[Path]) -> str:
    """Return the SHA-256 of a file's content, or of the digests of several, in order."""
    digests = []
    for path in paths:
        with path.open("rb") as content:
            digests.append(hashlib.file_digest(content, "sha256").hexdigest())
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )
