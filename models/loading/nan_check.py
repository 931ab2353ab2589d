"""Rejects weights that contain NaN or infinity, with which a model would generate noise."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.loading.hf_tensors import hf_names_of
from kvflow_jax.models.model import LAYERS, Params
from kvflow_jax.models.ops import XLA, Ops
from kvflow_jax.models.quantised import Weight

# Elements that stay in the processor's cache between the two passes over them.
_BLOCK = 1 << 18


def check_finite(params: Params, config: ModelConfig, source: str, ops: Ops = XLA) -> None:
    """Check every weight once, in the memory that it is in.

    Of several processes that share the model, each must call this. On CPU a process checks the
    shards that it has, on accelerators all processes check the whole weights together.

    Args:
        source: name of the model, for messages.
        ops: which packed the weights.

    Raises:
        ModelLoadError: listing the tensors with NaN or infinity under their Hugging Face names.
    """
    check = _on_host if jax.default_backend() == "cpu" else _on_device
    checked = {name: check(ops, weight, _is_stacked(name)) for name, weight in params.items()}
    problems = [
        _tensors(name, int(layer), config)
        for name, is_finite in jax.device_get(checked).items()
        for layer in np.flatnonzero(~np.atleast_1d(is_finite))
    ]
    if problems:
        raise ModelLoadError(
            f"the weights of {source} contain NaN or infinity; download or convert them again:\n- "
            + "\n- ".join(problems)
        )


def _is_stacked(name: str) -> bool:
    """True if the first axis of a weight is the layer."""
    return name.startswith(LAYERS) and not _number(name).isdecimal()


def _tensors(name: str, layer: int, config: ModelConfig) -> str:
    """Name the tensor of a weight; for a fused projection all that it may be."""
    if (number := _number(name)).isdecimal():
        name, layer = LAYERS + name.removeprefix(f"{LAYERS}{number}."), int(number)
    return " or ".join(hf_names_of(config, name, layer))


def _number(name: str) -> str:
    """Return the layer number in the name of an unstacked weight; else another part of it."""
    return name.removeprefix(LAYERS).partition(".")[0]


@partial(jax.jit, static_argnums=(0, 2))
def _on_device(ops: Ops, weight: Weight, is_stacked: bool) -> jax.Array:  # bool[], bool[num_layers]
    floats = ops.floats(weight)
    return jnp.isfinite(floats).all(axis=tuple(range(is_stacked, floats.ndim)))


def _on_host(ops: Ops, weight: Weight, is_stacked: bool) -> Any:  # bool[], bool[num_layers]
    """Check this process's shards; on CPU that needs neither a program nor a copy."""
    shards = [ops.floats(shard) for shard in _local_shards(weight)]
    if not is_stacked:
        return all(_is_finite(shard) for shard in shards)
    return np.array([all(map(_is_finite, layer)) for layer in zip(*shards, strict=True)])


def _local_shards(weight: Weight) -> Iterator[Any]:
    """Yield the shards of this process's devices, in numpy."""
    num = len(jax.tree.leaves(weight)[0].addressable_shards)
    for i in range(num):
        yield jax.tree.map(lambda array, i=i: np.asarray(array.addressable_shards[i].data), weight)


def _is_finite(array: np.ndarray) -> bool:
    """Check an array at the speed of memory.

    Read as integers of the same size, infinity and NaN are the largest values of either sign.
    """
    size = array.dtype.itemsize
    bounds = [
        (kind, np.array(sign * np.inf, array.dtype).view(kind))
        for kind, sign in ((f"i{size}", 1), (f"u{size}", -1))
    ]
    flat = array.reshape(-1)
    return all(
        flat[start : start + _BLOCK].view(kind).max() < bound
        for start in range(0, len(flat), _BLOCK)
        for kind, bound in bounds
    )
