"""The runner on real devices: one jitted step a batch shape, over a donated pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvflow_jax.batch import Batch, BatchShape, BatchShapes
from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.models.attention import Rows
from kvflow_jax.models.llama import Angles
from kvflow_jax.models.model import Leaves, Model, Params
from kvflow_jax.models.sampler import sample

LayerGroup = tuple[np.int32, list[Leaves]]  # number of its first layer, weights of each


@partial(jax.tree_util.register_dataclass, data_fields=["pool", "last_tokens"], meta_fields=[])
@dataclass(frozen=True)
class DeviceState:
    """What lives on the device from step to step; donated to each step and returned by it."""

    pool: KVPool
    last_tokens: jax.Array  # i32[num_slots], the last sample of each running request


class JaxStep:
    """A dispatched step. Its samples are on their way to the host already."""

    def __init__(self, sampled: jax.Array) -> None:
        self._sampled = sampled  # i32[num_rows]
        sampled.copy_to_host_async()

    def result(self) -> np.ndarray:
        return np.asarray(self._sampled)


class ModelRunner:
    """Runs a model's steps.

    A model whose layers are stacked runs a step as one program. One whose layers are unrolled runs
    it as a few, ``layers_per_call`` layers each: a group's program serves all groups, so that it
    compiles as fast as a scan and copies no weights, for some dispatches of 0.1 ms.

    Args:
        model, params: the definition and its weights, on the device.
        pool_spec: sizes of the pool that it allocates.
        shapes: the batch shapes that may come; ``warm_up`` compiles programs for each.
        layers_per_call: most layers of one program, where layers are unrolled.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        pool_spec: PoolSpec,
        shapes: BatchShapes,
        *,
        layers_per_call: int = 6,
    ) -> None:
        self.pool_spec = pool_spec
        self.shapes = shapes
        self._params = params
        self._ends = model.end_leaves(params)
        self._groups = _layer_groups(model, params, layers_per_call) if model.unroll else []
        self._state = self._fresh_state()
        self._step = jax.jit(partial(_step, model), donate_argnums=1)
        self._begin = jax.jit(partial(_begin, model, pool_spec))
        self._run_layers = jax.jit(model.run_layers, donate_argnames=("hidden", "pool"))
        self._finish = jax.jit(partial(_finish, model), donate_argnums=1)

    @property
    def is_intact(self) -> bool:
        return not self._state.pool.data.is_deleted()

    def submit(self, batch: Batch) -> JaxStep:
        return self._submit(batch, self._groups)

    def reset(self) -> None:
        # Free the old pool before the new one is made: both may not fit.
        if self.is_intact:
            self._state.pool.data.delete()
        self._state = self._fresh_state()

    def warm_up(self, track: Callable[[Iterable[BatchShape]], Iterable[BatchShape]] = iter) -> None:
        """Compile and run every program once on padding; ``track`` may show progress."""
        for shape in track(self.shapes.shapes):
            # One group of layers is enough: its program is that of all groups.
            self._submit(self._padding(shape), self._groups[:1]).result()

    def memory_analysis(self, shape: BatchShape) -> Any:
        """What the compiler says of the memory of the program that writes the pool, bytes.

        The pool must be among ``alias_size_in_bytes``, and no copy of it in ``temp``.
        """
        batch = self._padding(shape)
        if not self._groups:
            return self._step.lower(self._params, self._state, batch).compile().memory_analysis()
        hidden, angles, rows = self._begin(self._ends, self._state.last_tokens, batch)
        first, layers = self._groups[0]
        lowered = self._run_layers.lower(
            layers, first, hidden=hidden, angles=angles, rows=rows, pool=self._state.pool
        )
        return lowered.compile().memory_analysis()

    def _submit(self, batch: Batch, groups: Sequence[LayerGroup]) -> JaxStep:
        if not self._groups:
            self._state, sampled = self._step(self._params, self._state, batch)
            return JaxStep(sampled)
        pool, last_tokens = self._state.pool, self._state.last_tokens
        hidden, angles, rows = self._begin(self._ends, last_tokens, batch)
        for first, layers in groups:
            hidden, pool = self._run_layers(
                layers, first, hidden=hidden, angles=angles, rows=rows, pool=pool
            )
        sampled, last_tokens = self._finish(self._ends, last_tokens, hidden, batch)
        self._state = DeviceState(pool, last_tokens)
        return JaxStep(sampled)

    def _padding(self, shape: BatchShape) -> Batch:
        return Batch.empty(shape, self.shapes.pages_per_seq, self.shapes.num_slots)

    def _fresh_state(self) -> DeviceState:
        return DeviceState(
            pool=KVPool.zeros(self.pool_spec),
            last_tokens=jnp.zeros(self.shapes.num_slots, jnp.int32),
        )


def _layer_groups(model: Model, params: Params, most: int) -> list[LayerGroup]:
    """Layers in equal groups, each with the number of its first: one program serves them all."""
    num = model.config.num_layers
    size = max(n for n in range(1, most + 1) if num % n == 0)
    return [
        (np.int32(first), [model.layer_leaves(params, i) for i in range(first, first + size)])
        for first in range(0, num, size)
    ]


def _step(
    model: Model, params: Params, state: DeviceState, batch: Batch
) -> tuple[DeviceState, jax.Array]:
    """Run one batch: write the KV of its tokens, sample a token for each row.

    Returns:
        The state with the new KV and samples, and the samples, i32[num_rows]. Rows that are
        padding, or stop short of their sequence's end, give a sample that means nothing.
    """
    ends = model.end_leaves(params)
    hidden, angles, rows = _begin(model, state.pool.spec, ends, state.last_tokens, batch)
    hidden, pool = model.run_all_layers(params, hidden, angles, rows, state.pool)
    sampled, last_tokens = _finish(model, ends, state.last_tokens, hidden, batch)
    return DeviceState(pool, last_tokens), sampled


def _begin(
    model: Model, spec: PoolSpec, ends: Leaves, last_tokens: jax.Array, batch: Batch
) -> tuple[jax.Array, Angles, Rows]:
    """Embed the batch's tokens and say where each of them stands.

    Returns:
        Hidden states [num_tokens, hidden_size], and the angles and rows that all layers share.
    """
    shape = batch.shape
    num_decode, tile = shape.num_decode, shape.tile
    from_device = last_tokens[jnp.maximum(batch.token_source, 0)]
    decode_tokens = jnp.where(batch.token_source >= 0, from_device, batch.tokens[:num_decode])
    tokens = jnp.concatenate([decode_tokens, batch.tokens[num_decode:]])
    # Row of every flat token, and its place within the row: known when the shape is.
    row = np.repeat(np.arange(shape.num_rows), [1] * num_decode + [tile] * shape.num_tiles)
    place = np.concatenate([np.zeros(num_decode), np.tile(np.arange(tile), shape.num_tiles)])
    place = place.astype(np.int32)
    positions = batch.query_start[row] + place
    page_table = jnp.asarray(batch.page_table)
    page = page_table.at[row, positions // spec.page_size].get(mode="clip")
    slots = page * spec.page_size + positions % spec.page_size
    rows = Rows(
        page_table=page_table,
        query_start=jnp.asarray(batch.query_start),
        query_len=jnp.asarray(batch.query_len),
        write_slots=jnp.where(place < batch.query_len[row], slots, spec.num_slots),
        num_decode=num_decode,
        tile=tile,
    )
    return *model.begin(ends, tokens, positions), rows


def _finish(
    model: Model,
    ends: Leaves,
    last_tokens: jax.Array,
    hidden: jax.Array,  # [num_tokens, hidden_size]
    batch: Batch,
) -> tuple[jax.Array, jax.Array]:
    """Sample a token after the last of each row: i32[num_rows], and last_tokens with them."""
    shape = batch.shape
    starts = np.concatenate([np.arange(shape.num_decode), _tile_starts(shape)]).astype(np.int32)
    last = starts + jnp.maximum(batch.query_len - 1, 0)
    sampled = sample(
        model.finish(ends, hidden[last]),
        batch.temperature,
        batch.top_k,
        batch.top_p,
        batch.seed,
        batch.query_start + batch.query_len,
    )
    return sampled, last_tokens.at[batch.sample_slot].set(sampled, mode="drop")


def _tile_starts(shape: BatchShape) -> np.ndarray:
    """i32[num_tiles], flat token at which each tile begins."""
    return shape.num_decode + np.arange(shape.num_tiles) * shape.tile
