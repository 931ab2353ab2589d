"""The model's own sampling parameters, for requests that leave them out; as vLLM reads them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from kvflow_jax.api.load_config import LoadConfig
from kvflow_jax.errors import ConfigError, InvalidRequestError
from kvflow_jax.models.loading import embedded
from kvflow_jax.models.loading.generation_config import (
    GENERATION_CONFIG_FILE,
    read_generation_config,
)
from kvflow_jax.models.loading.gguf import read_sampling_fields
from kvflow_jax.models.loading.locate import download, find_local, is_hub_name
from kvflow_jax.requests.param import Integer
from kvflow_jax.requests.sampling_params import PARAMS, SamplingParams

log = logging.getLogger(__name__)

SamplingDefaults = Mapping[str, int | float]  # by name of the parameter

# Values of ``LoadConfig.generation_config`` that are no folders.
OF_MODEL, NEUTRAL = "auto", "kvflow"
# Field of generation_config.json -> parameter.
_FIELDS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def sampling_defaults(config: LoadConfig) -> SamplingDefaults:
    """Return the sampling parameters that the model's authors recommend, and log them.

    Reads no weights; of a model on the Hub, it downloads the small files.

    Returns:
        values of ``_FIELDS``; empty if the model recommends none or ``generation_config`` is
        "kvflow". ``max_tokens`` is also the maximum of every request.

    Raises:
        ModelLoadError: the file cannot be read, or the folder that is asked for has none.
        ConfigError: a value is none that requests may have; names the file and the remedy.
    """
    source, fields = _read(config.model, config.generation_config)
    defaults = {_FIELDS[name]: value for name, value in fields.items() if name in _FIELDS}
    # Hugging Face's files and vLLM switch top_k off with -1, too.
    top_k = PARAMS["top_k"]
    if isinstance(top_k, Integer) and defaults.get("top_k") == top_k.http_off:
        del defaults["top_k"]
    try:
        params = SamplingParams(**defaults)  # type: ignore[arg-type]
    except InvalidRequestError as error:
        raise ConfigError(
            f"the sampling defaults in {source} cannot be used: {error}; correct the file, or "
            f"ignore it with --generation-config {NEUTRAL}"
        ) from error
    checked: dict[str, int | float] = {name: getattr(params, name) for name in defaults}
    if checked:
        listed = ", ".join(f"{name} {value:g}" for name, value in checked.items())
        log.info(
            "sampling defaults of %s: %s (--generation-config %s: none)", source, listed, NEUTRAL
        )
    return checked


def _read(model: str, generation_config: str) -> tuple[str, Mapping[str, object]]:
    """Return the name of the source, and its fields, named as in generation_config.json."""
    if generation_config == NEUTRAL:
        return "", {}
    if generation_config != OF_MODEL:
        folder = Path(generation_config).expanduser()
        return str(folder / GENERATION_CONFIG_FILE), read_generation_config(folder)
    if model == embedded.NAME:
        return f"the model {model}", embedded.GENERATION_CONFIG
    path = find_local(model)
    if path is None and is_hub_name(model):
        path = download(model, weights=False)
    if path is not None and path.suffix == ".gguf":
        return str(path), read_sampling_fields(path)
    if path is None or not (path / GENERATION_CONFIG_FILE).exists():
        return "", {}
    return str(path / GENERATION_CONFIG_FILE), read_generation_config(path)
