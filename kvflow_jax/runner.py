"""The runner on real devices: one jitted step a batch shape, over a donated pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
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
from kvflow_jax.models.sampler import SCORED_AT_ONCE, Logprobs, Past, TokenMemory, sample, score
from kvflow_jax.request import Request
from kvflow_jax.sampling import MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS

MAX_STOPS = MAX_STOP_TOKEN_IDS + 16  # and the model's own ends
LayerGroup = tuple[np.int32, list[Leaves]]  # number of its first layer, weights of each


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["last_tokens", "memory", "hidden"],
    meta_fields=[],
)
@dataclass(frozen=True)
class SamplerState:
    """What sampling keeps on the device from step to step.

    Attributes:
        last_tokens: i32[num_slots], the last sample of each running request.
        memory: what penalties, bans and bias need of each running request.
        hidden: [most tokens of a step + SCORED_AT_ONCE, hidden_size], the last step's hidden
            states, from which prompt tokens can be scored.
    """

    last_tokens: jax.Array
    memory: TokenMemory
    hidden: jax.Array


@partial(jax.tree_util.register_dataclass, data_fields=["pool", "sampler"], meta_fields=[])
@dataclass(frozen=True)
class DeviceState:
    """What lives on the device from step to step; donated to each step and returned by it."""

    pool: KVPool
    sampler: SamplerState


class JaxStep:
    """A dispatched step. Its samples are on their way to the host already."""

    def __init__(self, tokens: jax.Array, logprobs: Logprobs | None) -> None:
        self._tokens = tokens  # i32[num_rows]
        self._logprobs = logprobs
        for array in jax.tree.leaves((tokens, logprobs)):
            array.copy_to_host_async()

    def result(self) -> np.ndarray:
        return np.asarray(self._tokens)

    def logprobs(self) -> Logprobs | None:
        return jax.tree.map(np.asarray, self._logprobs)


class JaxScores:
    """Scores of prompt tokens, on their way to the host."""

    def __init__(self, logprobs: Logprobs, num_tokens: int) -> None:
        self._logprobs, self._num_tokens = logprobs, num_tokens
        for array in jax.tree.leaves(logprobs):
            array.copy_to_host_async()

    def result(self) -> Logprobs:
        return jax.tree.map(lambda array: np.asarray(array)[: self._num_tokens], self._logprobs)


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
        layers_per_call: int = 15,
    ) -> None:
        self.pool_spec = pool_spec
        self.shapes = shapes
        self._config, self._dtype = model.config, model.dtype
        self._vocab_size = model.config.vocab_size
        self._params = params
        self._ends = model.end_leaves(params)
        self._groups = _layer_groups(model, params, layers_per_call) if model.unroll else []
        self._state = self._fresh_state()
        self._step = jax.jit(partial(_step, model), donate_argnums=1)
        self._begin = jax.jit(partial(_begin, model, pool_spec))
        self._run_layers = jax.jit(model.run_layers, donate_argnames=("hidden", "pool"))
        self._finish = jax.jit(partial(_finish, model), donate_argnums=1)
        self._score = jax.jit(partial(_score, model))
        self._recall = jax.jit(TokenMemory.recall, donate_argnums=0)

    @property
    def is_intact(self) -> bool:
        return not self._state.pool.data.is_deleted()

    def submit(self, batch: Batch) -> JaxStep:
        return self._submit(batch, self._groups)

    def recall(self, slot: int, request: Request) -> None:
        past = _past(slot, request, self.shapes, self._vocab_size)
        sampler = self._state.sampler
        memory = self._recall(sampler.memory, past)
        self._state = replace(self._state, sampler=replace(sampler, memory=memory))

    def score(self, start: int, targets: np.ndarray) -> list[JaxScores]:
        hidden, scores = self._state.sampler.hidden, []
        for at in range(0, len(targets), SCORED_AT_ONCE):
            some = np.zeros(SCORED_AT_ONCE, np.int32)
            num = len(targets[at : at + SCORED_AT_ONCE])
            some[:num] = targets[at : at + num]
            logprobs = self._score(self._ends, hidden, np.int32(start + at), some)
            scores.append(JaxScores(logprobs, num))
        return scores

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
        past = _empty_past(self.shapes, self._vocab_size)
        memory = self._recall(self._state.sampler.memory, past)
        sampler = replace(self._state.sampler, memory=memory)
        self._state = replace(self._state, sampler=sampler)
        for scores in self.score(0, np.zeros(1, np.int32)):
            scores.result()

    def memory_analysis(self, shape: BatchShape) -> Any:
        """What the compiler says of the memory of the program that writes the pool, bytes.

        The pool must be among ``alias_size_in_bytes``, and no copy of it in ``temp``.
        """
        batch = self._padding(shape)
        if not self._groups:
            return self._step.lower(self._params, self._state, batch).compile().memory_analysis()
        last_tokens = self._state.sampler.last_tokens
        hidden, angles, rows = self._begin(self._ends, last_tokens, batch)
        first, layers = self._groups[0]
        lowered = self._run_layers.lower(
            layers, first, hidden=hidden, angles=angles, rows=rows, pool=self._state.pool
        )
        return lowered.compile().memory_analysis()

    def _submit(self, batch: Batch, groups: Sequence[LayerGroup]) -> JaxStep:
        wants_logprobs = batch.wants_logprobs
        if not self._groups:
            self._state, tokens, logprobs = self._step(self._params, self._state, batch)
            return JaxStep(tokens, logprobs if wants_logprobs else None)
        pool, sampler = self._state.pool, self._state.sampler
        hidden, angles, rows = self._begin(self._ends, sampler.last_tokens, batch)
        for first, layers in groups:
            hidden, pool = self._run_layers(
                layers, first, hidden=hidden, angles=angles, rows=rows, pool=pool
            )
        sampler, tokens, logprobs = self._finish(self._ends, sampler, hidden, batch)
        self._state = DeviceState(pool, sampler)
        return JaxStep(tokens, logprobs if wants_logprobs else None)

    def _padding(self, shape: BatchShape) -> Batch:
        return Batch.empty(shape, self.shapes.pages_per_seq, self.shapes.num_slots)

    def _fresh_state(self) -> DeviceState:
        num_slots, config = self.shapes.num_slots, self._config
        most_tokens = max(shape.num_tokens for shape in self.shapes.shapes)
        hidden_shape = (most_tokens + SCORED_AT_ONCE, config.hidden_size)
        return DeviceState(
            pool=KVPool.zeros(self.pool_spec),
            sampler=SamplerState(
                last_tokens=jnp.zeros(num_slots, jnp.int32),
                memory=TokenMemory.zeros(num_slots, config.vocab_size),
                hidden=jnp.zeros(hidden_shape, jnp.dtype(self._dtype)),
            ),
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
) -> tuple[DeviceState, jax.Array, Logprobs]:
    """Run one batch: write the KV of its tokens, sample a token for each row.

    Returns:
        The state with the new KV and samples; the samples, i32[num_rows], and their logprobs. Rows
        that are padding, or stop short of their sequence's end, give some that mean nothing.
    """
    ends = model.end_leaves(params)
    hidden, angles, rows = _begin(model, state.pool.spec, ends, state.sampler.last_tokens, batch)
    hidden, pool = model.run_all_layers(params, hidden, angles, rows, state.pool)
    sampler, tokens, logprobs = _finish(model, ends, state.sampler, hidden, batch)
    return DeviceState(pool, sampler), tokens, logprobs


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
    state: SamplerState,
    hidden: jax.Array,  # [num_tokens, hidden_size]
    batch: Batch,
) -> tuple[SamplerState, jax.Array, Logprobs]:
    """Sample a token after the last of each row: i32[num_rows]; see ``sample``."""
    shape = batch.shape
    starts = np.concatenate([np.arange(shape.num_decode), _tile_starts(shape)]).astype(np.int32)
    last = starts + jnp.maximum(batch.query_len - 1, 0)
    logits = model.finish(ends, hidden[last])
    position = batch.query_start + batch.query_len
    rows = batch.sampling
    tokens, logprobs = sample(logits, rows, state.memory, position)
    slot = rows.slot
    state = SamplerState(
        last_tokens=state.last_tokens.at[slot].set(tokens, mode="drop"),
        memory=state.memory.count(slot, tokens),
        hidden=jax.lax.dynamic_update_slice(state.hidden, hidden, (0, 0)),
    )
    return state, tokens, logprobs


def _score(
    model: Model,
    ends: Leaves,
    hidden: jax.Array,  # [any, hidden_size]
    start: jax.Array,  # i32[]
    targets: jax.Array,  # i32[SCORED_AT_ONCE]
) -> Logprobs:
    """How likely ``targets`` are, each after the hidden state at its place from ``start`` on."""
    some = jax.lax.dynamic_slice_in_dim(hidden, start, len(targets))
    return score(model.finish(ends, some), targets)


def _past(slot: int, request: Request, shapes: BatchShapes, vocab_size: int) -> Past:
    """A request's past as arrays of fixed sizes."""
    past = _empty_past(shapes, vocab_size)
    bias = request.params.logit_bias
    past.tokens[: request.num_known] = request.known
    past.stop_ids[: len(request.stop_ids)] = list(request.stop_ids)
    past.bias_ids[: len(bias)] = list(bias)
    past.bias[: len(bias)] = list(bias.values())
    return replace(
        past,
        slot=np.int32(slot),
        num_prompt=np.int32(request.num_prompt),
        num_tokens=np.int32(request.num_known),
    )


def _empty_past(shapes: BatchShapes, vocab_size: int) -> Past:
    return Past(
        slot=np.int32(0),
        tokens=np.zeros(shapes.pages_per_seq * shapes.page_size, np.int32),
        num_prompt=np.int32(0),
        num_tokens=np.int32(0),
        stop_ids=np.full(MAX_STOPS, vocab_size, np.int32),
        bias_ids=np.full(MAX_LOGIT_BIAS, vocab_size, np.int32),
        bias=np.zeros(MAX_LOGIT_BIAS, np.float32),
    )


def _tile_starts(shape: BatchShape) -> np.ndarray:
    """i32[num_tiles], flat token at which each tile begins."""
    return shape.num_decode + np.arange(shape.num_tiles) * shape.tile
