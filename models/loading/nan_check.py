"""Weights that hold NaN or infinity are refused: served, they answer with noise."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.loading.hf_tensors import names_of
from kvflow_jax.models.model import LAYERS, Params

_BLOCK = 1 << 18  # numbers that stay in the processor's cache between two looks


def check_finite(params: Params, config: ModelConfig, source: str) -> None:
    """Look at every weight once, where it lies.

    Of processes that share the model all call this: what each holds, or on accelerators all of it.

    Args:
        source: what they were read from, for messages.

    Raises:
        ModelLoadError: listing what holds NaN or infinity, under Hugging Face's names.
    """
    look = _on_host if jax.default_backend() == "cpu" else _on_device
    found = {name: look(weight, _is_stacked(name)) for name, weight in params.items()}
    problems = [
        _tensors(name, int(layer), config)
        for name, is_finite in jax.device_get(found).items()
        for layer in np.flatnonzero(~np.atleast_1d(is_finite))
    ]
    if problems:
        raise ModelLoadError(
            f"the weights of {source} hold NaN or infinity; download or convert them again:\n- "
            + "\n- ".join(problems)
        )


def _is_stacked(name: str) -> bool:
    """Whether a weight is of all layers, along its first axis."""
    return name.startswith(LAYERS) and not _number(name).isdecimal()


def _tensors(name: str, layer: int, config: ModelConfig) -> str:
    """The tensor at fault; of a fused projection those that may be."""
    if (number := _number(name)).isdecimal():
        name, layer = LAYERS + name.removeprefix(f"{LAYERS}{number}."), int(number)
    return " or ".join(names_of(config, name, layer))


def _number(name: str) -> str:
    return name.removeprefix(LAYERS).partition(".")[0]


@partial(jax.jit, static_argnums=1)
def _on_device(weight: jax.Array, is_stacked: bool) -> jax.Array:  # bool[], bool[num_layers]
    return jnp.isfinite(weight).all(axis=tuple(range(is_stacked, weight.ndim)))


def _on_host(weight: jax.Array, is_stacked: bool) -> Any:  # bool[], bool[num_layers]
    """Of what this process holds; on CPU that needs no program and no copy."""
    parts = [np.asarray(shard.data) for shard in weight.addressable_shards]
    if not is_stacked:
        return all(_is_finite(part) for part in parts)
    return np.array([all(_is_finite(part[i]) for part in parts) for i in range(len(weight))])


def _is_finite(array: np.ndarray) -> bool:
    """As integers, infinity and NaN are the largest of their sign: as fast as memory is read."""
    size = array.dtype.itemsize
    ends = [
        (kind, np.array(sign * np.inf, array.dtype).view(kind))
        for kind, sign in ((f"i{size}", 1), (f"u{size}", -1))
    ]
    flat = array.reshape(-1)
    return all(
        flat[start : start + _BLOCK].view(kind).max() < end
        for start in range(0, len(flat), _BLOCK)
        for kind, end in ends
    )
