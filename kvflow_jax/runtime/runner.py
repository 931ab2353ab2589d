"""The runner on JAX devices: one compiled step for each batch shape, over a donated pool."""

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
from kvflow_jax.runtime.forward import RunnerState, SamplerState, StepFns
from kvflow_jax.runtime.sampler import SCORE_CHUNK_LEN, Logprobs, PenaltyState, SequenceState
from kvflow_jax.runtime.sharded_forward import sharded_step_fns

LAYERS_PER_CALL = 10
MAX_STOPS = MAX_STOP_TOKEN_IDS + 16  # the request's, and the model's EOS tokens
MASKS_PER_CALL = 8  # of running requests with a grammar
LayerGroup = tuple[np.int32, list[Leaves]]  # index of its first layer, matrices of each layer


class JaxStep:
    """A dispatched step.

    Args:
        tokens: i32[num_rows].
        copies: whether to begin to copy the samples to the host: the host reads the memory of a CPU
            device without a copy.
    """

    def __init__(
        self, tokens: jax.Array, logprobs: Logprobs[jax.Array] | None, *, copies: bool
    ) -> None:
        self.tokens = tokens
        self._logprobs = logprobs
        if copies:
            tokens.copy_to_host_async()
        if logprobs is not None:
            _start_copy(logprobs)

    def result(self) -> np.ndarray:
        return np.asarray(self.tokens)

    def logprobs(self) -> Logprobs[np.ndarray] | None:
        # Most steps have no logprobs, and jax.tree.map costs 0.1 ms even without leaves.
        return None if self._logprobs is None else jax.tree.map(np.asarray, self._logprobs)


class JaxScores:
    """Dispatched scores of prompt tokens, which are being copied to the host."""

    def __init__(self, logprobs: Logprobs[jax.Array], num_tokens: int) -> None:
        self.logprobs, self._num_tokens = logprobs, num_tokens
        _start_copy(logprobs)

    def result(self) -> Logprobs[np.ndarray]:
        scores: Logprobs[np.ndarray] = jax.tree.map(
            lambda array: np.asarray(array)[: self._num_tokens], self.logprobs
        )
        return scores


class ModelRunner:
    """Runs a model's steps; a ``Runner``.

    A model with stacked layers runs a step as one program. A model with unrolled layers runs it as
    several, of ``layers_per_call`` layers each. All groups of layers share one program, so it
    compiles as fast as a scan and copies no weights, at the cost of dispatches of 0.1 ms each.

    Args:
        model, params: the definition and its weights, on the device.
        pool_spec: sizes of the pool to allocate.
        shapes: all batch shapes; ``warm_up`` compiles the programs of each.
        extent_sizes: numbers of blocks that one transfer may move; empty: no transfers.
        shards: the devices over which model and pool are sharded; None: one device has all.
        layers_per_call: maximum number of layers in one program, if layers are unrolled.
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
        # Blocks loaded from the host are committed to the device, and so are all results computed
        # from them. Unless all arrays are committed from the start, each program compiles twice.
        self._replicated: jax.sharding.Sharding  # of the sampler's state
        self._pool_sharding: jax.sharding.Sharding
        self.block_sharding: jax.sharding.Sharding
        if shards is None:
            here = jax.sharding.SingleDeviceSharding(jax.tree.leaves(params)[0].device)
            self._replicated = self._pool_sharding = self.block_sharding = here
            params, shard_spec = jax.device_put(params, here), pool_spec
            steps = StepFns.of(model)
        else:
            self._replicated = shards.sharding(REPLICATED)
            self._pool_sharding = shards.sharding(POOL)
            self.block_sharding = shards.sharding(BLOCKS)
            model = shards.local_model(model)
            shard_spec = replace(pool_spec, num_kv_heads=model.config.num_kv_heads)
            steps = sharded_step_fns(shards.mesh, model)
        self._copies_samples = jax.default_backend() != "cpu"
        self._model, self._params, self._shard_spec = model, params, shard_spec
        self._embed_and_head = model.embed_and_head_leaves(params)
        self._groups = layer_groups(model, params, layers_per_call) if model.unroll else []
        self._vectors = model.vector_leaves(params) if model.unroll else []
        self._state = self._fresh_state()
        self._step = jax.jit(steps.run_step, donate_argnums=1)
        self._embed = jax.jit(partial(steps.embed, pool_spec))
        self._run_layers = jax.jit(steps.run_layers, donate_argnames=("hidden", "pool"))
        self._sample_tokens = jax.jit(steps.sample_tokens, donate_argnums=1)
        self._score = jax.jit(steps.score_hidden)
        self._load_sequence_state = jax.jit(
            PenaltyState.load_sequence_state, donate_argnums=0, out_shardings=self._replicated
        )
        self._set_token_masks = jax.jit(_set_rows, donate_argnums=0, out_shardings=self._replicated)
        self._read = jax.jit(KVPool.gather, out_shardings=self.block_sharding)
        self._write = jax.jit(KVPool.scatter, donate_argnums=0, out_shardings=self._pool_sharding)

    def read_blocks(self, pages: np.ndarray) -> jax.Array:
        blocks: jax.Array = self._read(self._state.pool, pages)
        return blocks

    def write_blocks(self, blocks: jax.Array, indices: np.ndarray, pages: np.ndarray) -> None:
        # A block whose page is out of range is not written.
        targets = np.full(blocks.shape[1], self.pool_spec.num_pages, np.int32)
        targets[indices] = pages
        pool = self._write(self._state.pool, targets, blocks)
        self._state = replace(self._state, pool=pool)

    @property
    def is_intact(self) -> bool:
        return not self._state.pool.data.is_deleted()

    def submit(self, batch: Batch[np.ndarray]) -> JaxStep:
        return self._submit(batch, self._groups)

    def load_sequence_state(self, request: Request) -> None:
        self.set_sequence_state(self.sequence_state(request))

    def sequence_state(self, request: Request) -> SequenceState[np.ndarray]:
        """Return a request's state as arrays of fixed sizes, for ``set_sequence_state``."""
        return _sequence_state(request, self.shapes, self._model.config.vocab_size)

    def set_sequence_state(self, sequence_state: SequenceState[np.ndarray]) -> None:
        """Load a request's state into its seq_slot."""
        sampler = self._state.sampler
        penalties = self._load_sequence_state(sampler.penalties, sequence_state)
        self._state = replace(self._state, sampler=replace(sampler, penalties=penalties))

    def set_token_masks(self, mask_slots: np.ndarray, masks: np.ndarray) -> None:
        sampler = self._state.sampler
        token_masks, num_slots = sampler.token_masks, self.shapes.num_mask_slots
        for first in range(0, len(mask_slots), MASKS_PER_CALL):
            own = mask_slots[first : first + MASKS_PER_CALL]
            # Out of range: padding, which is not written.
            rows = np.full(MASKS_PER_CALL, num_slots, np.int32)
            rows[: len(own)] = own
            values = np.zeros((MASKS_PER_CALL, masks.shape[1]), np.int32)
            values[: len(own)] = masks[first : first + MASKS_PER_CALL]
            token_masks = self._set_token_masks(token_masks, rows, values)
        self._state = replace(self._state, sampler=replace(sampler, token_masks=token_masks))

    def score(self, start: int, targets: np.ndarray) -> list[JaxScores]:
        hidden, scores = self._state.sampler.hidden, []
        for first in range(0, len(targets), SCORE_CHUNK_LEN):
            chunk = np.zeros(SCORE_CHUNK_LEN, np.int32)
            num = len(targets[first : first + SCORE_CHUNK_LEN])
            chunk[:num] = targets[first : first + num]
            logprobs = self._score(self._embed_and_head, hidden, np.int32(start + first), chunk)
            scores.append(JaxScores(logprobs, num))
        return scores

    def reset(self) -> None:
        # Free the old pool first: the device may not have room for two.
        if self.is_intact:
            self._state.pool.data.delete()
        self._state = self._fresh_state()

    def warm_up(self, track: Callable[[Iterable[BatchShape]], Iterable[BatchShape]] = iter) -> None:
        """Compile every program and run it once on padding.

        Args:
            track: wraps the shapes; for a progress bar.
        """
        for shape in track(self.shapes.shapes):
            # One group of layers is enough, because all groups share its program.
            self._submit(self._padding(shape), self._groups[:1]).result()
        self.set_sequence_state(_empty_sequence_state(self.shapes, self._model.config.vocab_size))
        self.set_token_masks(np.zeros(1, np.int32), np.asarray(self._state.sampler.token_masks[:1]))
        for scores in self.score(0, np.zeros(1, np.int32)):
            scores.result()
        for size in self._extent_sizes:
            # Read the null page, write nothing.
            empty = np.empty(0, np.int32)
            self.write_blocks(self.read_blocks(np.zeros(size, np.int32)), empty, empty)

    def longest_step_s(self) -> float:
        """Measure the seconds of the longest step, without context. Warm up first."""
        shape = max(self.shapes.shapes, key=lambda shape: shape.num_tokens)
        start = time.perf_counter()
        self._submit(self._padding(shape), self._groups[:1]).result()
        return (time.perf_counter() - start) * max(1, len(self._groups))

    def prefill_s_per_token(self) -> float:
        """Measure the seconds that prefill takes for each token, without context. Warm up first."""
        shape = max((s for s in self.shapes.shapes if not s.num_decode), key=lambda s: s.num_tokens)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            self._submit(self._padding(shape), self._groups).result()
            times.append(time.perf_counter() - start)
        return min(times) / shape.num_tokens

    def memory_analysis(self, shape: BatchShape) -> Any:
        """Return XLA's memory analysis, in bytes, of the program that writes the pool.

        ``alias_size_in_bytes`` must include the pool, ``temp_size_in_bytes`` no copy of it.
        """
        batch = self._padding(shape)
        if not self._groups:
            return self._step.lower(self._params, self._state, batch).compile().memory_analysis()
        last_tokens = self._state.sampler.last_tokens
        hidden, angles, metadata = self._embed(self._embed_and_head, last_tokens, batch)
        first, matrices = self._groups[0]
        rest = {"hidden": hidden, "angles": angles, "metadata": metadata, "pool": self._state.pool}
        lowered = self._run_layers.lower(matrices, self._vectors, first, **rest)
        return lowered.compile().memory_analysis()

    def _submit(self, batch: Batch[np.ndarray], groups: Sequence[LayerGroup]) -> JaxStep:
        wants_logprobs = batch.wants_logprobs
        if not self._groups:
            self._state, tokens, logprobs = self._step(self._params, self._state, batch)
            return self._in_flight(tokens, logprobs if wants_logprobs else None)
        pool, sampler = self._state.pool, self._state.sampler
        hidden, angles, metadata = self._embed(self._embed_and_head, sampler.last_tokens, batch)
        for first, matrices in groups:
            hidden, pool = self._run_layers(
                matrices,
                self._vectors,
                first,
                hidden=hidden,
                angles=angles,
                metadata=metadata,
                pool=pool,
            )
        sampler, tokens, logprobs = self._sample_tokens(
            self._embed_and_head, sampler, hidden, batch
        )
        self._state = RunnerState(pool, sampler)
        return self._in_flight(tokens, logprobs if wants_logprobs else None)

    def _in_flight(self, tokens: jax.Array, logprobs: Logprobs[jax.Array] | None) -> JaxStep:
        return JaxStep(tokens, logprobs, copies=self._copies_samples)

    def _padding(self, shape: BatchShape) -> Batch[np.ndarray]:
        return Batch.empty(shape, self.shapes.pages_per_seq, self.shapes.num_seq_slots)

    def _fresh_state(self) -> RunnerState:
        # Allocate every shard on its device: no device may have room for the whole pool.
        zeros = jax.jit(partial(KVPool.zeros, self.pool_spec), out_shardings=self._pool_sharding)
        sampler = jax.jit(
            partial(SamplerState.zeros, self._model, self.shapes), out_shardings=self._replicated
        )
        return RunnerState(KVPool(zeros().data, self._shard_spec), sampler())


def _set_rows(
    table: jax.Array,  # [num_rows, width]
    rows: jax.Array,  # i32[n]; out of range: dropped
    values: jax.Array,  # [n, width]
) -> jax.Array:
    return table.at[rows].set(values, mode="drop")


def _start_copy(logprobs: Logprobs[jax.Array]) -> None:
    for array in jax.tree.leaves(logprobs):
        array.copy_to_host_async()


def layer_groups(
    model: Model, params: Params, max_layers: int = LAYERS_PER_CALL
) -> list[LayerGroup]:
    """Return the layers in equal groups of at most ``max_layers``, which share one program."""
    num = model.config.num_layers
    size = max(n for n in range(1, max_layers + 1) if num % n == 0)
    return [
        (np.int32(first), [model.matrix_leaves(params, i) for i in range(first, first + size)])
        for first in range(0, num, size)
    ]


def _sequence_state(
    request: Request, shapes: BatchShapes, vocab_size: int
) -> SequenceState[np.ndarray]:
    sequence_state = _empty_sequence_state(shapes, vocab_size)
    bias = request.params.logit_bias
    sequence_state.tokens[: request.num_known] = request.known_tokens
    sequence_state.stop_ids[: len(request.stop_ids)] = list(request.stop_ids)
    sequence_state.bias_ids[: len(bias)] = list(bias)
    sequence_state.bias[: len(bias)] = list(bias.values())
    return replace(
        sequence_state,
        seq_slot=np.int32(request.seq_slot),
        num_prompt=np.int32(request.num_prompt),
        num_tokens=np.int32(request.num_known),
    )


def _empty_sequence_state(shapes: BatchShapes, vocab_size: int) -> SequenceState[np.ndarray]:
    return SequenceState(
        seq_slot=np.int32(0),
        tokens=np.zeros(shapes.pages_per_seq * shapes.page_size, np.int32),
        num_prompt=np.int32(0),
        num_tokens=np.int32(0),
        stop_ids=np.full(MAX_STOPS, vocab_size, np.int32),
        bias_ids=np.full(MAX_LOGIT_BIAS, vocab_size, np.int32),
        bias=np.zeros(MAX_LOGIT_BIAS, np.float32),
    )
