"""Random weights, for models without a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from kvflow_jax.models.model import LAYERS, Model, Params
from kvflow_jax.models.sharding import Shards, group_columns_by_device, weight_spec


def random_params(model: Model, seed: int = 0, shards: Shards | None = None) -> Params:
    """Initialise each shard on its own device; the values do not depend on ``ops`` or ``shards``.

    Unstacked layers are initialised one by one: a device has no memory for the model twice.
    """
    ends_key, layers_key = jax.random.split(jax.random.key(seed))
    layer_keys = jax.random.split(layers_key, model.config.num_layers)
    params: Params = _compile_init(
        model, shards, model.init_embed_and_head, "", model.embed_and_head_names
    )(ends_key)
    init_all_layers = jax.vmap(model.init_layer)
    params |= _compile_init(model, shards, init_all_layers, LAYERS, model.vector_names)(layer_keys)
    if model.matrix_names:
        # One program serves all layers: it is compiled under the names of layer 0.
        first = f"{LAYERS}0."
        init_layer = _compile_init(model, shards, model.init_layer, first, model.matrix_names)
        for i, key in enumerate(layer_keys):
            layer = init_layer(key)
            params |= {f"{LAYERS}{i}.{name}": layer[first + name] for name in model.matrix_names}
    return params


def _compile_init(
    model: Model,
    shards: Shards | None,
    init: Callable[[jax.Array], dict[str, jax.Array]],
    prefix: str,
    names: Sequence[str],
) -> Any:
    """Compile ``init``, limited to the weights in ``names``, as a function of PRNG keys.

    Args:
        prefix: of the weights' names in ``Params``, "" outside the layers.
    """

    def run(keys: jax.Array) -> Params:
        initialised, params = init(keys), {}
        for name in names:
            weight = initialised[name]
            pack: Callable[[Any], Any] = partial(model.pack, LAYERS + name if prefix else name)
            if shards is not None:
                weight = group_columns_by_device(name, weight, model.config, shards.num_shards)
                # Each device packs its own shard, as when it is read from a file.
                spec = weight_spec(prefix + name, weight.ndim)
                pack = jax.shard_map(pack, mesh=shards.mesh, in_specs=spec, out_specs=spec)
            params[prefix + name] = pack(weight)
        return params

    shardings = None
    if shards is not None:
        all_shardings = shards.weight_shardings(model)
        shardings = {prefix + name: all_shardings[prefix + name] for name in names}
    return jax.jit(run, out_shardings=shardings)
