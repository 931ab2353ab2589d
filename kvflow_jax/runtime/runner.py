"""The runner on real devices: one jitted step a batch shape, over a donated pool."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.models.model import Leaves, Model, Params
from kvflow_jax.models.sharding import BLOCKS, POOL, REPLICATED, Shards
from kvflow_jax.requests.request import Request
from kvflow_jax.requests.sampling_params import MAX_LOGIT_BIAS, MAX_STOP_TOKEN_IDS
from kvflow_jax.runtime.batch import Batch, BatchShape, BatchShapes
from kvflow_jax.runtime.forward import DeviceState, SamplerState, StepFns
from kvflow_jax.runtime.sampler import SCORE_CHUNK_LEN, Logprobs, SequenceState, PenaltyState
from kvflow_jax.runtime.sharded_forward import sharded_step_fns

LAYERS_PER_CALL = 10
MAX_STOPS = MAX_STOP_TOKEN_IDS + 16  # and the model's own ends
LayerGroup = tuple[np.int32, list[Leaves]]  # number of its first layer, matrices of each


class JaxStep:
    """A dispatched step. Its samples are on their way to the host already."""

    def __init__(self, tokens: jax.Array, logprobs: Logprobs | None) -> None:
        self.tokens = tokens  # i32[num_rows]
        self._logprobs = logprobs
        tokens.copy_to_host_async()
        if logprobs is not None:
            _start_copy(logprobs)

    def result(self) -> np.ndarray:
        return np.asarray(self.tokens)

    def logprobs(self) -> Logprobs | None:
        # Most steps have none, and a walk over no tree costs 0.1 ms all the same.
        return None if self._logprobs is None else jax.tree.map(np.asarray, self._logprobs)


class JaxScores:
    """Scores of prompt tokens, on their way to the host."""

    def __init__(self, logprobs: Logprobs, num_tokens: int) -> None:
        self.logprobs, self._num_tokens = logprobs, num_tokens
        _start_copy(logprobs)

    def result(self) -> Logprobs:
        return jax.tree.map(lambda array: np.asarray(array)[: self._num_tokens], self.logprobs)


class ModelRunner:
    """Runs a model's steps.

    A model whose layers are stacked runs a step as one program. One whose layers are unrolled runs
    it as a few, ``layers_per_call`` layers each: a group's program serves all groups, so that it
    compiles as fast as a scan and copies no weights, for some dispatches of 0.1 ms.

    Args:
        model, params: the definition and its weights, on the device.
        pool_spec: sizes of the pool that it allocates.
        shapes: the batch shapes that may come; ``warm_up`` compiles programs for each.
        extent_sizes: how many blocks may be moved at once; empty: none ever are.
        shards: the devices that share model and pool; None: one has all.
        layers_per_call: most layers of one program, where layers are unrolled.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        pool_spec: PoolSpec,
        shapes: BatchShapes,
        *,
        extent_sizes: Sequence[int] = (),
        layers_per_call: int = LAYERS_PER_CALL,
        shards: Shards | None = None,
    ) -> None:
        self.pool_spec = pool_spec
        self.shapes = shapes
        self._extent_sizes = extent_sizes
        # Blocks that come from the host are bound to the device, and what is computed with them is,
        # too. Were not everything from the start, each program would be compiled a second time.
        self._whole: jax.sharding.Sharding  # how what is small lies, the pool, and blocks of it
        self._pool_lies: jax.sharding.Sharding
        self.block_sharding: jax.sharding.Sharding
        if shards is None:
            here = jax.sharding.SingleDeviceSharding(next(iter(params.values())).device)
            self._whole = self._pool_lies = self.block_sharding = here
            params, own_spec = jax.device_put(params, here), pool_spec
            steps = StepFns.of(model)
        else:
            self._whole, self._pool_lies, self.block_sharding = map(shards.sharding, (REPLICATED, POOL, BLOCKS))
            model = shards.local_model(model)
            own_spec = replace(pool_spec, num_kv_heads=model.config.num_kv_heads)
            steps = sharded_step_fns(shards.mesh, model)
        self._model, self._params, self._own_spec = model, params, own_spec
        self._ends = model.embed_and_head_leaves(params)
        self._groups = layer_groups(model, params, layers_per_call) if model.unroll else []
        self._vectors = model.vector_leaves(params) if model.unroll else []
        self._state = self._fresh_state()
        self._step = jax.jit(steps.run_step, donate_argnums=1)
        self._embed = jax.jit(partial(steps.embed, pool_spec))
        self._run_layers = jax.jit(steps.run_layers, donate_argnames=("hidden", "pool"))
        self._sample_tokens = jax.jit(steps.sample_tokens, donate_argnums=1)
        self._score = jax.jit(steps.score_hidden)
        self._recall = jax.jit(
            PenaltyState.load_sequence_state, donate_argnums=0, out_shardings=self._whole
        )
        self._read = jax.jit(KVPool.gather, out_shardings=self.block_sharding)
        self._write = jax.jit(KVPool.scatter, donate_argnums=0, out_shardings=self._pool_lies)

    def read_blocks(self, slots: np.ndarray) -> jax.Array:
        return self._read(self._state.pool, slots)

    def write_blocks(self, blocks: jax.Array, indices: np.ndarray, slots: np.ndarray) -> None:
        where = np.full(blocks.shape[1], self.pool_spec.num_pages, np.int32)
        where[indices] = slots
        pool = self._write(self._state.pool, where, blocks)
        self._state = replace(self._state, pool=pool)

    @property
    def is_intact(self) -> bool:
        return not self._state.pool.data.is_deleted()

    def submit(self, batch: Batch) -> JaxStep:
        return self._submit(batch, self._groups)

    def load_sequence_state(self, request: Request) -> None:
        self.set_sequence_state(self.past(request))

    def past(self, request: Request) -> SequenceState:
        """What a request's slot is to remember."""
        return _past(request, self.shapes, self._model.config.vocab_size)

    def set_sequence_state(self, sequence_state: SequenceState) -> None:
        """Remember a past for its slot."""
        sampler = self._state.sampler
        memory = self._recall(sampler.memory, sequence_state)
        self._state = replace(self._state, sampler=replace(sampler, memory=memory))

    def score(self, start: int, targets: np.ndarray) -> list[JaxScores]:
        hidden, scores = self._state.sampler.hidden, []
        for at in range(0, len(targets), SCORE_CHUNK_LEN):
            some = np.zeros(SCORE_CHUNK_LEN, np.int32)
            num = len(targets[at : at + SCORE_CHUNK_LEN])
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
        self.set_sequence_state(_empty_past(self.shapes, self._model.config.vocab_size))
        for scores in self.score(0, np.zeros(1, np.int32)):
            scores.result()
        for size in self._extent_sizes:
            # From and to the null page, of which nothing is ever read.
            nothing = np.empty(0, np.int32)
            self.write_blocks(self.read_blocks(np.zeros(size, np.int32)), nothing, nothing)

    def prefill_s_per_token(self) -> float:
        """Seconds that a token of a prompt takes, without attention. Warm up first."""
        shape = max((s for s in self.shapes.shapes if not s.num_decode), key=lambda s: s.num_tokens)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            self._submit(self._padding(shape), self._groups).result()
            times.append(time.perf_counter() - start)
        return min(times) / shape.num_tokens

    def memory_analysis(self, shape: BatchShape) -> Any:
        """What the compiler says of the memory of the program that writes the pool, bytes.

        The pool must be among ``alias_size_in_bytes``, and no copy of it in ``temp``.
        """
        batch = self._padding(shape)
        if not self._groups:
            return self._step.lower(self._params, self._state, batch).compile().memory_analysis()
        last_tokens = self._state.sampler.last_tokens
        hidden, angles, metadata = self._embed(self._ends, last_tokens, batch)
        first, matrices = self._groups[0]
        rest = {"hidden": hidden, "angles": angles, "metadata": metadata, "pool": self._state.pool}
        lowered = self._run_layers.lower(matrices, self._vectors, first, **rest)
        return lowered.compile().memory_analysis()

    def _submit(self, batch: Batch, groups: Sequence[LayerGroup]) -> JaxStep:
        wants_logprobs = batch.wants_logprobs
        if not self._groups:
            self._state, tokens, logprobs = self._step(self._params, self._state, batch)
            return JaxStep(tokens, logprobs if wants_logprobs else None)
        pool, sampler = self._state.pool, self._state.sampler
        hidden, angles, metadata = self._embed(self._ends, sampler.last_tokens, batch)
        for first, matrices in groups:
            hidden, pool = self._run_layers(
                matrices, self._vectors, first, hidden=hidden, angles=angles, metadata=metadata, pool=pool
            )
        sampler, tokens, logprobs = self._sample_tokens(self._ends, sampler, hidden, batch)
        self._state = DeviceState(pool, sampler)
        return JaxStep(tokens, logprobs if wants_logprobs else None)

    def _padding(self, shape: BatchShape) -> Batch:
        return Batch.empty(shape, self.shapes.pages_per_seq, self.shapes.num_seq_slots)

    def _fresh_state(self) -> DeviceState:
        # Made where they are to lie: whole, the pool may fit no device.
        zeros = jax.jit(partial(KVPool.zeros, self.pool_spec), out_shardings=self._pool_lies)
        sampler = jax.jit(
            partial(SamplerState.zeros, self._model, self.shapes), out_shardings=self._whole
        )
        return DeviceState(KVPool(zeros().data, self._own_spec), sampler())


def _start_copy(logprobs: Logprobs) -> None:
    for array in jax.tree.leaves(logprobs):
        array.copy_to_host_async()


def layer_groups(model: Model, params: Params, most: int = LAYERS_PER_CALL) -> list[LayerGroup]:
    """Layers in equal groups, each with the number of its first: one program serves them all."""
    num = model.config.num_layers
    size = max(n for n in range(1, most + 1) if num % n == 0)
    return [
        (np.int32(first), [model.matrix_leaves(params, i) for i in range(first, first + size)])
        for first in range(0, num, size)
    ]


def _past(request: Request, shapes: BatchShapes, vocab_size: int) -> SequenceState:
    """A request's past as arrays of fixed sizes."""
    sequence_state = _empty_past(shapes, vocab_size)
    bias = request.params.logit_bias
    sequence_state.tokens[: request.num_known] = request.known
    sequence_state.stop_ids[: len(request.stop_ids)] = list(request.stop_ids)
    sequence_state.bias_ids[: len(bias)] = list(bias)
    sequence_state.bias[: len(bias)] = list(bias.values())
    return replace(
        sequence_state,
        seq_slot=np.int32(request.seq_slot),
        num_prompt=np.int32(request.num_prompt),
        num_tokens=np.int32(request.num_known),
    )


def _empty_past(shapes: BatchShapes, vocab_size: int) -> SequenceState:
    return SequenceState(
        seq_slot=np.int32(0),
        tokens=np.zeros(shapes.pages_per_seq * shapes.page_size, np.int32),
        num_prompt=np.int32(0),
        num_tokens=np.int32(0),
        stop_ids=np.full(MAX_STOPS, vocab_size, np.int32),
        bias_ids=np.full(MAX_LOGIT_BIAS, vocab_size, np.int32),
        bias=np.zeros(MAX_LOGIT_BIAS, np.float32),
    )
