"""The model as the engine sees it: pure functions of a flat dict of weights."""

from __future__ import annotations

from collections.abc import Sequence
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
from kvflow_jax.models.rope import Angles

Params = dict[str, jax.Array]  # dotted name -> weight, as ``Model.specs`` says
Leaves = list[jax.Array]  # weights of one part of the model, in its own order
Specs = dict[str, jax.ShapeDtypeStruct]

LAYERS = "layers."


@dataclass(frozen=True)
class Model:
    """A definition without weights: close over it in a jitted step and pass ``params`` in.

    >>> hidden, pool = model.forward(params, tokens, positions, rows, pool)
    >>> logits = model.logits(params, hidden[last])

    Files and checkpoints hold *stacked* weights, plain. ``ops`` decide how the device holds them:
    in what form each matrix, and stacked (``layers.mlp.down_proj.weight``) and scanned, which
    compiles one layer, or layer by layer (``layers.0.mlp.down_proj.weight``), one after the other;
    vectors of layers (norms, biases) are stacked always, because a dispatch pays for each leaf.
    """

    config: ModelConfig
    dtype: str
    ops: Ops
    specs: Specs  # what ``params`` must be
    stacked_specs: Specs  # what files and checkpoints hold
    _ends: _Part
    _layer: _Part

    @property
    def unroll(self) -> bool:
        """Whether layers run one after the other, each with weights of its own."""
        return self.ops.unroll

    @classmethod
    def build(cls, config: ModelConfig, dtype: str = "float32", *, ops: Ops = XLA) -> Model:
        """Define the model; allocates nothing.

        Raises:
            ModelLoadError: for a dtype that weights cannot have.
        """
        if dtype not in DTYPES:
            raise ModelLoadError(
                f"dtype {dtype!r} is not supported; supported: {', '.join((AUTO, *DTYPES))}"
            )
        num = config.num_layers
        kinds: tuple[type[nnx.Module], type[nnx.Module]] = (EmbedAndHead, DecoderLayer)
        plain_ends, plain_layer = (_Part.of(kind, config, dtype, XLA) for kind in kinds)
        stacked_specs = plain_ends.specs | {
            LAYERS + name: jax.ShapeDtypeStruct((num, *spec.shape), spec.dtype)
            for name, spec in plain_layer.specs.items()
        }
        ends, layer = (_Part.of(kind, config, dtype, ops) for kind in kinds)
        specs = stacked_specs
        if ops.unroll:
            specs = ends.specs | {
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
        return cls(config, dtype, ops, specs, stacked_specs, ends, layer)

    def make_ends(self, key: jax.Array) -> Params:
        """Random weights before and after the layers, plain, under their names."""
        ends = _Part.of(self._ends.kind, self.config, self.dtype, XLA)
        return dict(zip(ends.specs, ends.init(self.config, self.dtype, key), strict=True))

    def make_layer(self, key: jax.Array) -> Params:
        """Random weights of one layer, plain, under their names within it."""
        layer = _Part.of(self._layer.kind, self.config, self.dtype, XLA)
        return dict(zip(layer.specs, layer.init(self.config, self.dtype, key), strict=True))

    def leaves(self, name: str) -> list[tuple[str, int | None]]:
        """Under which names ``params`` hold a stacked weight, each with its layer; None: all."""
        if name in self.specs:
            return [(name, None)]
        rest = name.removeprefix(LAYERS)
        return [(f"{LAYERS}{i}.{rest}", i) for i in range(self.config.num_layers)]

    def pack(self, name: str, weight: Any) -> Any:
        """A leaf of a stacked weight, numpy or jax, in the form that ``ops`` want it in."""
        if not name.startswith(LAYERS):
            # Matrices outside the layers are tables.
            return self.ops.pack_table(weight) if weight.ndim == 2 else weight
        # Vectors stay stacked, and experts have a matrix each: these stay as they are.
        is_matrix = weight.ndim == 2 and name not in self.specs
        return self.ops.pack(weight) if is_matrix else weight

    def forward(
        self,
        params: Params,
        tokens: jax.Array,  # i32[num_tokens], in row order
        positions: jax.Array,  # i32[num_tokens]
        rows: AttentionMetadata,
        pool: KVPool,
    ) -> tuple[jax.Array, KVPool]:
        """Hidden states of every token, [num_tokens, hidden_size], and the pool with their KV."""
        hidden, angles = self.embed(self.end_leaves(params), tokens, positions)
        return self.run_all_layers(params, hidden, angles, rows, pool)

    def logits(
        self,
        params: Params,
        hidden: jax.Array,  # [n, hidden_size]
    ) -> jax.Array:
        """Logits of the next token, f32[n, vocab_size]."""
        return self.compute_logits(self.end_leaves(params), hidden)

    def end_leaves(self, params: Params) -> Leaves:
        """The weights before and after the layers, which ``embed`` and ``compute_logits`` take."""
        return [params[name] for name in self.end_names]

    @property
    def end_names(self) -> list[str]:
        """Names of the weights before and after the layers."""
        return list(self._ends.specs)

    def matrix_leaves(self, params: Params, layer: int) -> Leaves:
        """The matrices of one layer of an unrolled model, which ``run_layers`` takes."""
        return [params[f"{LAYERS}{layer}.{name}"] for name in self.matrix_names]

    @property
    def matrix_names(self) -> list[str]:
        """Names within a layer of what each has of its own where layers are unrolled."""
        return [name for name in self._layer.specs if LAYERS + name not in self.specs]

    def vector_leaves(self, params: Params) -> Leaves:
        """The vectors of all layers of an unrolled model, stacked, which ``run_layers`` takes."""
        return [params[LAYERS + name] for name in self.vector_names]

    @property
    def vector_names(self) -> list[str]:
        """Names within a layer of what is stacked even where layers are unrolled."""
        return [name for name in self._layer.specs if LAYERS + name in self.specs]

    def embed(
        self,
        ends: Leaves,
        tokens: jax.Array,  # i32[num_tokens]
        positions: jax.Array,  # i32[num_tokens]
    ) -> tuple[jax.Array, Angles]:
        """Embeddings, [num_tokens, hidden_size], and what the layers need of the positions."""
        return self._ends.merge(ends).embed_tokens(tokens, positions)

    def run_layers(
        self,
        matrices: Sequence[Leaves],  # of each of these layers
        vectors: Leaves,  # of all layers
        first: jax.Array,  # i32[], which layer the first of them is
        hidden: jax.Array,  # [num_tokens, hidden_size]
        angles: Angles,
        rows: AttentionMetadata,
        pool: KVPool,
    ) -> tuple[jax.Array, KVPool]:
        """Run consecutive layers one after the other."""
        is_vector = [LAYERS + name in self.specs for name in self._layer.specs]
        for i, of_layer in enumerate(matrices):
            rest, own = iter(of_layer), iter([vector[first + i] for vector in vectors])
            leaves = [next(own if stacked else rest) for stacked in is_vector]
            hidden, pool = _run_layer(self._layer, leaves, first + i, hidden, angles, rows, pool)
        return hidden, pool

    def run_all_layers(
        self,
        params: Params,
        hidden: jax.Array,  # [num_tokens, hidden_size]
        angles: Angles,
        rows: AttentionMetadata,
        pool: KVPool,
    ) -> tuple[jax.Array, KVPool]:
        """Run every layer, by a scan where they are stacked."""
        if self.unroll:
            matrices = [self.matrix_leaves(params, i) for i in range(self.config.num_layers)]
            vectors = self.vector_leaves(params)
            return self.run_layers(matrices, vectors, jnp.int32(0), hidden, angles, rows, pool)

        def body(
            carry: tuple[jax.Array, KVPool], xs: tuple[jax.Array, Leaves]
        ) -> tuple[tuple[jax.Array, KVPool], None]:
            index, leaves = xs
            return _run_layer(self._layer, leaves, index, carry[0], angles, rows, carry[1]), None

        # The pool is carried: as xs or ys the scan would copy it.
        indices = jnp.arange(self.config.num_layers, dtype=jnp.int32)
        stacked = [params[LAYERS + name] for name in self._layer.specs]
        return jax.lax.scan(body, (hidden, pool), (indices, stacked))[0]

    def compute_logits(self, ends: Leaves, hidden: jax.Array) -> jax.Array:
        """Logits, f32[n, vocab_size], of hidden states [n, hidden_size] after the last layer."""
        logits: jax.Array = self._ends.merge(ends).logits(hidden)
        return logits


@dataclass(frozen=True, eq=False)  # hashed by identity: static in jitted functions
class _Part:
    """An nnx module split once: its structure, and the names and shapes of its weights."""

    kind: type[nnx.Module]
    ops: Ops
    specs: Specs
    graphdef: nnx.GraphDef[Any]
    treedef: jax.tree_util.PyTreeDef

    @classmethod
    def of(cls, kind: type[nnx.Module], config: ModelConfig, dtype: str, ops: Ops) -> _Part:
        define = partial(_define, kind, config, dtype, ops)
        graphdef, state = nnx.split(nnx.eval_shape(lambda: define(0)))
        leaves, treedef = jax.tree_util.tree_flatten_with_path(state)
        specs = {_name(path): jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in leaves}
        return cls(kind, ops, specs, graphdef, treedef)

    def init(self, config: ModelConfig, dtype: str, key: jax.Array) -> Leaves:
        return jax.tree.leaves(nnx.state(_define(self.kind, config, dtype, self.ops, key)))

    def merge(self, leaves: Leaves) -> Any:
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, leaves))


# Jitted so that layers run one after the other are traced once: tracing all of them anew takes
# longer than loading their compiled program. The compiler inlines the calls.
@partial(jax.jit, static_argnums=0)
def _run_layer(
    part: _Part,
    leaves: Leaves,
    layer: jax.Array,  # i32[]
    hidden: jax.Array,  # [num_tokens, hidden_size]
    angles: Angles,
    rows: AttentionMetadata,
    pool: KVPool,
) -> tuple[jax.Array, KVPool]:
    out: tuple[jax.Array, KVPool] = part.merge(leaves)(hidden, angles, layer, rows, pool)
    return out


def _define(kind: Any, config: ModelConfig, dtype: str, ops: Ops, key: jax.Array | int) -> Any:
    return kind(config, ops=ops, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(params=key))


def _name(path: tuple[Any, ...]) -> str:
    """Dotted name of a leaf: the attributes that lead to it, without nnx's own wrapping."""
    parts = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    return ".".join(part for part in parts if part != "value")
