"""Weights made up, for models whose checkpoint is not at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from kvflow_jax.models.model import LAYERS, Model, Params
from kvflow_jax.models.sharding import Shards, arranged


def random_params(model: Model, seed: int = 0, shards: Shards | None = None) -> Params:
    """Random weights, each part made where it is to lie; the same whoever computes with them.

    Layers that have weights of their own are made one by one: a device that holds the model has no
    room for it twice.
    """
    ends_key, layers_key = jax.random.split(jax.random.key(seed))
    layer_keys = jax.random.split(layers_key, model.config.num_layers)
    params: Params = _maker(model, shards, model.make_ends, "", model.end_names)(ends_key)
    make_all = jax.vmap(model.make_layer)
    params |= _maker(model, shards, make_all, LAYERS, model.vector_names)(layer_keys)
    if model.matrix_names:
        first = f"{LAYERS}0."
        make = _maker(model, shards, model.make_layer, first, model.matrix_names)
        for i, key in enumerate(layer_keys):
            of_layer = make(key)
            params |= {f"{LAYERS}{i}.{name}": of_layer[first + name] for name in model.matrix_names}
    return params


def _maker(
    model: Model,
    shards: Shards | None,
    make: Callable[[jax.Array], Params],
    start: str,
    names: Sequence[str],
) -> Any:
    """Of what ``make`` gives only these, compiled, under names that begin so."""

    def run(keys: jax.Array) -> Params:
        made, params = make(keys), {}
        for name in names:
            weight = made[name]
            if shards is not None:
                weight = arranged(name, weight, model.config, shards.num)
            is_of_layer = bool(start)
            params[start + name] = model.pack(LAYERS + name if is_of_layer else name, weight)
        return params

    lies = None
    if shards is not None:
        all_lie = shards.weights(model)
        lies = {start + name: all_lie[start + name] for name in names}
    return jax.jit(run, out_shardings=lies)
