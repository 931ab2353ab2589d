"""The runner on real devices: one jitted step a batch shape, over a donated pool."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kvflow_jax.batch import Batch, BatchShape, BatchShapes
from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.models.attention import Rows
from kvflow_jax.models.model import Model, Params
from kvflow_jax.models.sampler import sample

log = logging.getLogger(__name__)


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

    Args:
        model, params: the definition and its weights, on the device.
        pool_spec: sizes of the pool that it allocates.
        shapes: the batch shapes that may come; ``warm_up`` compiles one program for each.
    """

    def __init__(
        self, model: Model, params: Params, pool_spec: PoolSpec, shapes: BatchShapes
    ) -> None:
        self.pool_spec = pool_spec
        self.shapes = shapes
        self._params = params
        self._state = self._fresh_state()
        self._step = jax.jit(partial(step, model), donate_argnums=1)

    @property
    def is_intact(self) -> bool:
        return not self._state.pool.data.is_deleted()

    def submit(self, batch: Batch) -> JaxStep:
        self._state, sampled = self._step(self._params, self._state, batch)
        return JaxStep(sampled)

    def reset(self) -> None:
        # Free the old pool before the new one is made: both may not fit.
        if self.is_intact:
            self._state.pool.data.delete()
        self._state = self._fresh_state()

    def warm_up(self, track: Callable[[Iterable[BatchShape]], Iterable[BatchShape]] = iter) -> None:
        """Compile and run every shape once on padding; ``track`` may show progress."""
        for shape in track(self.shapes.shapes):
            self.submit(self._padding(shape)).result()

    def memory_analysis(self, shape: BatchShape) -> Any:
        """What the compiler says of a step's memory, bytes: the pool must alias, not be copied."""
        lowered = self._step.lower(self._params, self._state, self._padding(shape))
        return lowered.compile().memory_analysis()

    def _padding(self, shape: BatchShape) -> Batch:
        return Batch.empty(shape, self.shapes.pages_per_seq, self.shapes.num_slots)

    def _fresh_state(self) -> DeviceState:
        return DeviceState(
            pool=KVPool.zeros(self.pool_spec),
            last_tokens=jnp.zeros(self.shapes.num_slots, jnp.int32),
        )


def step(
    model: Model, params: Params, state: DeviceState, batch: Batch
) -> tuple[DeviceState, jax.Array]:
    """Run one batch: write the KV of its tokens, sample a token for each row.

    Returns:
        The state with the new KV and samples, and the samples, i32[num_rows]. Rows that are
        padding, or stop short of their sequence's end, give a sample that means nothing.
    """
    shape, page_size = batch.shape, state.pool.spec.page_size
    num_decode, tile = shape.num_decode, shape.tile
    from_device = state.last_tokens[jnp.maximum(batch.token_source, 0)]
    decode_tokens = jnp.where(batch.token_source >= 0, from_device, batch.tokens[:num_decode])
    tokens = jnp.concatenate([decode_tokens, batch.tokens[num_decode:]])

    # Row and place within it of every flat token, known when the shape is.
    row = np.concatenate(
        [np.arange(num_decode), np.repeat(np.arange(shape.num_tiles) + num_decode, tile)]
    )
    place = np.concatenate([np.zeros(num_decode), np.tile(np.arange(tile), shape.num_tiles)])
    place = place.astype(np.int32)
    positions = batch.query_start[row] + place
    page = jnp.asarray(batch.page_table).at[row, positions // page_size].get(mode="clip")
    is_real = place < batch.query_len[row]
    slots = page * page_size + positions % page_size
    rows = Rows(
        page_table=batch.page_table,
        query_start=batch.query_start,
        query_len=batch.query_len,
        write_slots=jnp.where(is_real, slots, state.pool.spec.num_slots),
        num_decode=num_decode,
        tile=tile,
    )
    hidden, pool = model.forward(params, tokens, positions, rows, state.pool)

    first = np.concatenate(
        [np.arange(num_decode), num_decode + np.arange(shape.num_tiles) * tile]
    ).astype(np.int32)
    last = first + jnp.maximum(batch.query_len - 1, 0)
    sampled = sample(
        model.logits(params, hidden[last]),
        batch.temperature,
        batch.top_k,
        batch.top_p,
        batch.seed,
        batch.query_start + batch.query_len,
    )
    last_tokens = state.last_tokens.at[batch.sample_slot].set(sampled, mode="drop")
    return DeviceState(pool, last_tokens), sampled
