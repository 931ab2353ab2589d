"""The model as the engine sees it: pure functions of a flat dict of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kvflow_jax.cache.pool import KVPool
from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.attention import Rows
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.llama import Llama

Params = dict[str, jax.Array]  # dotted name -> weight, as ``Model.specs`` says
StackedParams = Mapping[str, np.ndarray]  # the same, weights of layers as [num_layers, ...]

DTYPES = ("float32", "bfloat16", "float16")
LAYERS = "layers."

_FAMILIES: dict[str, Callable[..., Any]] = {"llama": Llama}


@dataclass(frozen=True)
class Model:
    """A definition without weights: close over it in a jitted step and pass ``params`` in.

    >>> hidden, pool = model.forward(params, tokens, positions, rows, pool)
    >>> logits = model.logits(params, hidden[last])

    Files and checkpoints hold *stacked* weights. ``unroll`` decides how the device holds them:
    stacked (``layers.mlp.down_proj.weight``) and scanned, or layer by layer
    (``layers.0.mlp.down_proj.weight``) and unrolled, which CPUs run up to 1.6 times faster.
    """

    config: ModelConfig
    dtype: str
    unroll: bool
    specs: dict[str, jax.ShapeDtypeStruct]  # what ``params`` must be
    stacked_specs: dict[str, jax.ShapeDtypeStruct]  # what ``place`` takes
    _graphdef: nnx.GraphDef[Any]
    _treedef: jax.tree_util.PyTreeDef

    @classmethod
    def build(cls, config: ModelConfig, dtype: str = "float32", *, unroll: bool = False) -> Model:
        """Define the model; allocates nothing.

        Raises:
            ModelLoadError: for a dtype that weights cannot have.
        """
        if dtype not in DTYPES:
            raise ModelLoadError(
                f"dtype {dtype!r} is not supported; supported: {', '.join(DTYPES)}"
            )
        graphdef, treedef, specs = _split(config, dtype, unroll)
        stacked_specs = _split(config, dtype, unroll=False)[2] if unroll else specs
        return cls(config, dtype, unroll, specs, stacked_specs, graphdef, treedef)

    def init(self, seed: int = 0) -> Params:
        """Random weights, made on the device; the same for either ``unroll``."""

        @jax.jit
        def make(key: jax.Array) -> Params:
            leaves = jax.tree.leaves(nnx.state(_define(self.config, self.dtype, False, key)))
            return self._arrange(dict(zip(self.stacked_specs, leaves, strict=True)))

        return make(jax.random.key(seed))

    def place(self, stacked: StackedParams) -> Params:
        """Put weights on the default device, in the form ``forward`` takes.

        A CPU device may keep using the memory of ``stacked``: do not write to it afterwards.
        """
        return {
            name: jax.device_put(weight, may_alias=True)
            for name, weight in self._arrange(stacked).items()
        }

    def forward(
        self,
        params: Params,
        tokens: jax.Array,  # i32[num_tokens], in row order
        positions: jax.Array,  # i32[num_tokens]
        rows: Rows,
        pool: KVPool,
    ) -> tuple[jax.Array, KVPool]:
        """Hidden states of every token, [num_tokens, hidden_size], and the pool with their KV."""
        return self._merge(params)(tokens, positions, rows, pool)

    def logits(
        self,
        params: Params,
        hidden: jax.Array,  # [n, hidden_size]
    ) -> jax.Array:
        """Logits of the next token, f32[n, vocab_size]."""
        return self._merge(params).logits(hidden)

    def _merge(self, params: Params) -> Any:
        leaves = [params[name] for name in self.specs]
        return nnx.merge(self._graphdef, jax.tree.unflatten(self._treedef, leaves))

    def _arrange(self, stacked: Mapping[str, Any]) -> dict[str, Any]:
        """Stacked weights, or views of them layer by layer where layers are unrolled."""
        if not self.unroll:
            return {name: stacked[name] for name in self.specs}
        arranged = {}
        for name in self.specs:
            if name.startswith(LAYERS):
                index, _, rest = name.removeprefix(LAYERS).partition(".")
                arranged[name] = stacked[LAYERS + rest][int(index)]
            else:
                arranged[name] = stacked[name]
        return arranged


def _split(
    config: ModelConfig, dtype: str, unroll: bool
) -> tuple[nnx.GraphDef[Any], jax.tree_util.PyTreeDef, dict[str, jax.ShapeDtypeStruct]]:
    graphdef, state = nnx.split(nnx.eval_shape(lambda: _define(config, dtype, unroll, 0)))
    leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
    specs = {_name(path): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves}
    return graphdef, treedef, specs


def _define(config: ModelConfig, dtype: str, unroll: bool, key: jax.Array | int) -> Any:
    rngs = nnx.Rngs(params=key)
    return _FAMILIES[config.family](config, dtype=jnp.dtype(dtype), rngs=rngs, unroll=unroll)


def _name(path: tuple[Any, ...]) -> str:
    """Dotted name of a leaf: the attributes that lead to it, without nnx's own wrapping."""
    parts = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    return ".".join(part for part in parts if part != "value")
