"""One step as pure functions: from a batch and the device's state to samples and the next state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.models.attention import AttentionMetadata
from kvflow_jax.models.model import Leaves, Model, Params
from kvflow_jax.models.rope import Angles
from kvflow_jax.runtime.batch import Batch, BatchShape, BatchShapes
from kvflow_jax.runtime.sampler import SCORE_CHUNK_LEN, Logprobs, PenaltyState, sample, score


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
        hidden: [most tokens of a step + SCORE_CHUNK_LEN, hidden_size], the last step's hidden
            states, from which prompt tokens can be scored.
    """

    last_tokens: jax.Array
    memory: PenaltyState
    hidden: jax.Array

    @classmethod
    def zeros(cls, model: Model, shapes: BatchShapes) -> SamplerState:
        num_slots, config = shapes.num_seq_slots, model.config
        most_tokens = max(shape.num_tokens for shape in shapes.shapes)
        hidden_shape = (most_tokens + SCORE_CHUNK_LEN, config.hidden_size)
        return cls(
            last_tokens=jnp.zeros(num_slots, jnp.int32),
            memory=PenaltyState.zeros(num_slots, config.vocab_size),
            hidden=jnp.zeros(hidden_shape, jnp.dtype(model.dtype)),
        )


@partial(jax.tree_util.register_dataclass, data_fields=["pool", "sampler"], meta_fields=[])
@dataclass(frozen=True)
class DeviceState:
    """What lives on the device from step to step; donated to each step and returned by it."""

    pool: KVPool
    sampler: SamplerState

    @classmethod
    def zeros(cls, model: Model, spec: PoolSpec, shapes: BatchShapes) -> DeviceState:
        return cls(KVPool.zeros(spec), SamplerState.zeros(model, shapes))


@dataclass(frozen=True)
class StepFns:
    """The functions of a step, of one model and ready to be jitted, whatever devices share it."""

    run_step: Callable[..., tuple[DeviceState, jax.Array, Logprobs]]
    embed: Callable[..., tuple[jax.Array, Angles, AttentionMetadata]]
    run_layers: Callable[..., tuple[jax.Array, KVPool]]
    sample_tokens: Callable[..., tuple[SamplerState, jax.Array, Logprobs]]
    score_hidden: Callable[..., Logprobs]

    @classmethod
    def of(cls, model: Model) -> StepFns:
        """On one device."""
        return cls(
            partial(run_step, model),
            partial(embed, model),
            model.run_layers,
            partial(sample_tokens, model),
            partial(score_hidden, model),
        )


def run_step(
    model: Model, params: Params, state: DeviceState, batch: Batch
) -> tuple[DeviceState, jax.Array, Logprobs]:
    """Run one batch: write the KV of its tokens, sample a token for each row.

    Returns:
        The state with the new KV and samples; the samples, i32[num_rows], and their logprobs. Rows
        that are padding, or stop short of their sequence's end, give some that mean nothing.
    """
    ends = model.embed_and_head_leaves(params)
    hidden, angles, metadata = embed(model, state.pool.spec, ends, state.sampler.last_tokens, batch)
    hidden, pool = model.run_all_layers(params, hidden, angles, metadata, state.pool)
    sampler, tokens, logprobs = sample_tokens(model, ends, state.sampler, hidden, batch)
    return DeviceState(pool, sampler), tokens, logprobs


def embed(
    model: Model, spec: PoolSpec, ends: Leaves, last_tokens: jax.Array, batch: Batch
) -> tuple[jax.Array, Angles, AttentionMetadata]:
    """Embed the batch's tokens and say where each of them stands.

    Returns:
        Hidden states [num_tokens, hidden_size], and the angles and metadata that all layers share.
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
    metadata = AttentionMetadata(
        page_table=page_table,
        query_start=jnp.asarray(batch.query_start),
        query_len=jnp.asarray(batch.query_len),
        write_kv_slots=jnp.where(place < batch.query_len[row], slots, spec.num_kv_slots),
        num_decode=num_decode,
        tile=tile,
    )
    return *model.embed(ends, tokens, positions), metadata


def sample_tokens(
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
    logits = model.compute_logits(ends, hidden[last])
    position = batch.query_start + batch.query_len
    rows = batch.sampling
    tokens, logprobs = sample(logits, rows, state.memory, position)
    slot = rows.seq_slot
    state = SamplerState(
        last_tokens=state.last_tokens.at[slot].set(tokens, mode="drop"),
        memory=state.memory.count(slot, tokens),
        hidden=jax.lax.dynamic_update_slice(state.hidden, hidden, (0, 0)),
    )
    return state, tokens, logprobs


def score_hidden(
    model: Model,
    ends: Leaves,
    hidden: jax.Array,  # [any, hidden_size]
    start: jax.Array,  # i32[]
    targets: jax.Array,  # i32[SCORE_CHUNK_LEN]
) -> Logprobs:
    """How likely ``targets`` are, each after the hidden state at its place from ``start`` on."""
    some = jax.lax.dynamic_slice_in_dim(hidden, start, len(targets))
    return score(model.compute_logits(ends, some), targets)


def _tile_starts(shape: BatchShape) -> np.ndarray:
    """i32[num_tiles], flat token at which each tile begins."""
    return shape.num_decode + np.arange(shape.num_tiles) * shape.tile
