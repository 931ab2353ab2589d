"""The engine's view of a model: pure functions of a flat dict of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kvflow_jax.cache.pool import KVPool
from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.attention import AttentionMetadata
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.decoder import DecoderLayer, EmbedAndHead
from kvflow_jax.models.dtypes import AUTO, DTYPES
from kvflow_jax.models.ops import XLA, Ops
from kvflow_jax.models.quantised import Int8Array, Weight
from kvflow_jax.models.rope import Angles

Params = dict[str, Weight]  # dotted name -> weight, with the shapes of ``Model.specs``
Leaves = list[Any]  # weights of one module of the model, in the order of its names
Specs = dict[str, Any]  # dotted name -> weight, with ShapeDtypeStructs as arrays

LAYERS = "layers."


@dataclass(frozen=True)
class Model:
    """A definition without weights: close over it in a jitted step and pass ``params`` in.

    >>> hidden, pool = model.forward(params, tokens, positions, metadata, pool)
    >>> logits = model.logits(params, hidden[last])

    Files hold plain weights, *stacked* over layers. ``ops`` decides the form on the
    device: the layout of each matrix, and either stacked (``layers.mlp.down_proj.weight``) for a
    scan, which compiles one layer, or per layer (``layers.0.mlp.down_proj.weight``) for unrolled
    layers. Vectors of layers (norms, biases) are always stacked, because a dispatch pays per leaf.
    """

    config: ModelConfig
    dtype: str  # of KV; also of the weights, unless ``ops`` keeps them in another form
    ops: Ops
    specs: Specs  # of the weights in ``params``
    stacked_specs: Specs  # of the plain weights
    _embed_and_head: _ModuleDef
    _layer: _ModuleDef

    @property
    def unroll(self) -> bool:
        """True if layers are unrolled, each with its own weights; False if they are scanned."""
        return self.ops.unroll

    @property
    def weights_bytes(self) -> int:
        """Size of all packed weights, in bytes."""
        return sum(spec.size * spec.dtype.itemsize for spec in jax.tree.leaves(self.specs))

    @property
    def weights_dtype(self) -> str:
        """Dtype of the plain weights."""
        return self.ops.weights_dtype(self.dtype)

    @property
    def weights_form(self) -> str:
        """Name of the form of the weights in checkpoints."""
        return self.ops.weights_form(self.dtype)

    @property
    def hidden_dtype(self) -> str:
        """Dtype of hidden states."""
        return self.ops.hidden_dtype(self.dtype)

    @classmethod
    def build(cls, config: ModelConfig, dtype: str = "float32", *, ops: Ops = XLA) -> Model:
        """Define the model, without allocating memory.

        Raises:
            ModelLoadError: weights cannot have this dtype.
        """
        if dtype not in DTYPES:
            raise ModelLoadError(
                f"dtype {dtype!r} is not supported; supported: {', '.join((AUTO, *DTYPES))}"
            )
        num, weights_dtype = config.num_layers, ops.weights_dtype(dtype)
        kinds: tuple[type[nnx.Module], type[nnx.Module]] = (EmbedAndHead, DecoderLayer)
        plain_embed_and_head, plain_layer = (
            _ModuleDef.of(kind, config, weights_dtype, XLA) for kind in kinds
        )
        stacked_specs = plain_embed_and_head.specs | _stacked(plain_layer.specs, num)
        embed_and_head, layer = (_ModuleDef.of(kind, config, weights_dtype, ops) for kind in kinds)
        if not ops.unroll:
            specs = embed_and_head.specs | _stacked(layer.specs, num)
        else:
            specs = embed_and_head.specs | {
                name: stacked_specs[name]
                for name in (LAYERS + name for name in layer.specs)
                if len(stacked_specs[name].shape) == 2
            }
            specs |= {
                f"{LAYERS}{i}.{name}": spec
                for i in range(num)
                for name, spec in layer.specs.items()
                if LAYERS + name not in specs
            }
        return cls(config, dtype, ops, specs, stacked_specs, embed_and_head, layer)

    def init_embed_and_head(self, key: jax.Array) -> dict[str, jax.Array]:
        """Return random plain weights of the embedding, final norm and head, by name."""
        plain = _ModuleDef.of(self._embed_and_head.kind, self.config, self.weights_dtype, XLA)
        return dict(zip(plain.specs, plain.init(self.config, self.weights_dtype, key), strict=True))

    def init_layer(self, key: jax.Array) -> dict[str, jax.Array]:
        """Return random plain weights of one layer, by their names within it."""
        layer = _ModuleDef.of(self._layer.kind, self.config, self.weights_dtype, XLA)
        return dict(zip(layer.specs, layer.init(self.config, self.weights_dtype, key), strict=True))

    def leaves(self, name: str) -> list[tuple[str, int | None]]:
        """Return the names in ``params`` of a stacked weight, each with its layer; None: all."""
        if name in self.specs:
            return [(name, None)]
        rest = name.removeprefix(LAYERS)
        return [(f"{LAYERS}{i}.{rest}", i) for i in range(self.config.num_layers)]

    def pack(self, name: str, weight: Any) -> Any:
        """Return a leaf of the stacked weight ``name`` in the packed form of ``ops``.

        The leaf, a numpy or a jax array, may be a slice along the first axis. Vectors and the
        experts' stacks of matrices stay plain.
        """
        if not name.startswith(LAYERS):
            # The matrices outside the layers are embedding tables.
            return self.ops.pack_table(weight) if weight.ndim == 2 else weight
        is_matrix = len(self.stacked_specs[name].shape) == 3
        return self.ops.pack(weight) if is_matrix else weight

    def forward(
        self,
        params: Params,
        tokens: jax.Array,  # i32[num_tokens], in row order
        positions: jax.Array,  # i32[num_tokens]
        metadata: AttentionMetadata,
        pool: KVPool,
    ) -> tuple[jax.Array, KVPool]:
        """Return hidden states, [num_tokens, hidden_size], and the pool with the tokens' KV."""
        hidden, angles = self.embed(self.embed_and_head_leaves(params), tokens, positions)
        return self.run_all_layers(params, hidden, angles, metadata, pool)

    def logits(
        self,
        params: Params,
        hidden: jax.Array,  # [n, hidden_size]
    ) -> jax.Array:
        """Return logits of the next token, f32[n, vocab_size]."""
        return self.compute_logits(self.embed_and_head_leaves(params), hidden)

    def embed_and_head_leaves(self, params: Params) -> Leaves:
        """Return the weights outside the layers, for ``embed`` and ``compute_logits``."""
        return [params[name] for name in self.embed_and_head_names]

    @property
    def embed_and_head_names(self) -> list[str]:
        """Names of the weights outside the layers: embedding, final norm and head."""
        return list(self._embed_and_head.specs)

    def matrix_leaves(self, params: Params, layer: int) -> Leaves:
        """Return the matrices of one layer of an unrolled model, for ``run_layers``."""
        return [params[f"{LAYERS}{layer}.{name}"] for name in self.matrix_names]

    @property
    def matrix_names(self) -> list[str]:
        """Names within a layer of the weights that each unrolled layer has for itself."""
        return [name for name in self._layer.specs if LAYERS + name not in self.specs]

    def vector_leaves(self, params: Params) -> Leaves:
        """Return the stacked vectors of all layers of an unrolled model, for ``run_layers``."""
        return [params[LAYERS + name] for name in self.vector_names]

    @property
    def vector_names(self) -> list[str]:
        """Names within a layer of the weights that stay stacked when layers are unrolled."""
        return [name for name in self._layer.specs if LAYERS + name in self.specs]

    def embed(
        self,
        leaves: Leaves,  # see ``embed_and_head_leaves``
        tokens: jax.Array,  # i32[num_tokens]
        positions: jax.Array,  # i32[num_tokens]
    ) -> tuple[jax.Array, Angles]:
        """Return embeddings, [num_tokens, hidden_size], and the RoPE angles of the positions."""
        module = self._embed_and_head.merge(leaves)
        out: tuple[jax.Array, Angles] = module.embed_tokens(tokens, positions)
        return out

    def run_layers(
        self,
        matrices: Sequence[Leaves],  # of each of these layers
        vectors: Leaves,  # of all layers
        first: jax.Array,  # i32[], index of the first of these layers
        hidden: jax.Array,  # [num_tokens, hidden_size]
        angles: Angles,
        metadata: AttentionMetadata,
        pool: KVPool,
    ) -> tuple[jax.Array, KVPool]:
        """Run consecutive layers, unrolled."""
        is_vector = [LAYERS + name in self.specs for name in self._layer.specs]
        for i, layer_matrices in enumerate(matrices):
            next_matrix = iter(layer_matrices)
            next_vector = iter([vector[first + i] for vector in vectors])
            leaves = [next(next_vector if vector else next_matrix) for vector in is_vector]
            hidden, pool = _run_layer(
                self._layer, leaves, first + i, hidden, angles, metadata, pool
            )
        return hidden, pool

    def run_all_layers(
        self,
        params: Params,
        hidden: jax.Array,  # [num_tokens, hidden_size]
        angles: Angles,
        metadata: AttentionMetadata,
        pool: KVPool,
    ) -> tuple[jax.Array, KVPool]:
        """Run every layer, with a scan if the weights are stacked."""
        if self.unroll:
            matrices = [self.matrix_leaves(params, i) for i in range(self.config.num_layers)]
            vectors = self.vector_leaves(params)
            return self.run_layers(matrices, vectors, jnp.int32(0), hidden, angles, metadata, pool)

        def body(
            carry: tuple[jax.Array, KVPool], xs: tuple[jax.Array, Leaves]
        ) -> tuple[tuple[jax.Array, KVPool], None]:
            index, leaves = xs
            return _run_layer(
                self._layer, leaves, index, carry[0], angles, metadata, carry[1]
            ), None

        # Carry the pool: as xs or ys the scan would copy it.
        indices = jnp.arange(self.config.num_layers, dtype=jnp.int32)
        stacked = [params[LAYERS + name] for name in self._layer.specs]
        return jax.lax.scan(body, (hidden, pool), (indices, stacked))[0]

    def compute_logits(self, leaves: Leaves, hidden: jax.Array) -> jax.Array:
        """Return logits, f32[n, vocab_size], of the last layer's hidden states [n, hidden_size].

        ``leaves`` are the ``embed_and_head_leaves``.
        """
        logits: jax.Array = self._embed_and_head.merge(leaves).logits(hidden)
        return logits


@dataclass(frozen=True, eq=False)  # hashed by identity: static in jitted functions
class _ModuleDef:
    """Structure of an nnx module, and the names and shapes of its weights; split only once."""

    kind: type[nnx.Module]
    ops: Ops
    specs: Specs
    graphdef: nnx.GraphDef[Any]
    unflatten: Callable[[Leaves], nnx.State[Any, Any]]

    @classmethod
    def of(cls, kind: type[nnx.Module], config: ModelConfig, dtype: str, ops: Ops) -> _ModuleDef:
        define = partial(_define, kind, config, dtype, ops)
        graphdef, state = nnx.split(nnx.eval_shape(lambda: define(0)))
        leaves, treedef = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_weight)
        specs = {_name(path): jax.tree.map(_spec, weight) for path, weight in leaves}
        return cls(kind, ops, specs, graphdef, partial(jax.tree.unflatten, treedef))

    def init(self, config: ModelConfig, dtype: str, key: jax.Array) -> Leaves:
        state = nnx.state(_define(self.kind, config, dtype, self.ops, key))
        return jax.tree.leaves(state, is_leaf=_is_weight)

    def merge(self, leaves: Leaves) -> Any:
        return nnx.merge(self.graphdef, self.unflatten(leaves))


# Jitted so that unrolled layers are traced once: tracing each of them takes longer than loading
# their compiled program. The compiler inlines the calls.
@partial(jax.jit, static_argnums=0)
def _run_layer(
    module: _ModuleDef,
    leaves: Leaves,
    layer: jax.Array,  # i32[]
    hidden: jax.Array,  # [num_tokens, hidden_size]
    angles: Angles,
    metadata: AttentionMetadata,
    pool: KVPool,
) -> tuple[jax.Array, KVPool]:
    out: tuple[jax.Array, KVPool] = module.merge(leaves)(hidden, angles, layer, metadata, pool)
    return out


def _define(kind: Any, config: ModelConfig, dtype: str, ops: Ops, key: jax.Array | int) -> Any:
    return kind(config, ops=ops, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(params=key))


def _is_weight(node: Any) -> bool:
    return isinstance(node, Int8Array)


def _spec(array: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype)


def _stacked(specs: Specs, num_layers: int) -> Specs:
    """Return the specs of all layers' weights, stacked, from those of one."""

    def stack(spec: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((num_layers, *spec.shape), spec.dtype)

    return {LAYERS + name: jax.tree.map(stack, spec) for name, spec in specs.items()}


def _name(path: tuple[Any, ...]) -> str:
    """Return the dotted name of a leaf: its attribute path without nnx's wrapping."""
    keys = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    return ".".join(key for key in keys if key != "value")
