"""The forward pass of a step as pure functions: batch and device state to samples and new state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.grammar.matcher import num_mask_words
from kvflow_jax.models.attention import AttentionMetadata
from kvflow_jax.models.model import Leaves, Model, Params
from kvflow_jax.models.rope import Angles
from kvflow_jax.runtime.batch import Batch, BatchShape, BatchShapes
from kvflow_jax.runtime.sampler import SCORE_CHUNK_LEN, Logprobs, PenaltyState, sample, score


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["last_tokens", "penalties", "token_masks", "hidden"],
    meta_fields=[],
)
@dataclass(frozen=True)
class SamplerState:
    """State of the sampler, kept on the device between steps.

    Attributes:
        last_tokens: i32[num_seq_slots], the last sample of each running request.
        penalties: what penalties, bans and bias read, of each running request.
        token_masks: i32[num_mask_slots, ceil(vocab_size / 32)], the tokens that grammars allow
            next; stale unless the request has a grammar. The first are those of the seq_slots, the
            others those of the drafted tokens of a step.
        hidden: [max num_tokens of a step + SCORE_CHUNK_LEN, hidden_size], hidden states of the last
            step, from which prompt tokens are scored.
    """

    last_tokens: jax.Array
    penalties: PenaltyState
    token_masks: jax.Array
    hidden: jax.Array

    @classmethod
    def zeros(cls, model: Model, shapes: BatchShapes) -> SamplerState:
        num_seq_slots, config = shapes.num_seq_slots, model.config
        max_num_tokens = max(shape.num_tokens for shape in shapes.shapes)
        hidden_shape = (max_num_tokens + SCORE_CHUNK_LEN, config.hidden_size)
        return cls(
            last_tokens=jnp.zeros(num_seq_slots, jnp.int32),
            penalties=PenaltyState.zeros(num_seq_slots, config.vocab_size),
            token_masks=jnp.zeros(
                (shapes.num_mask_slots, num_mask_words(config.vocab_size)), jnp.int32
            ),
            hidden=jnp.zeros(hidden_shape, jnp.dtype(model.hidden_dtype)),
        )


@partial(jax.tree_util.register_dataclass, data_fields=["pool", "sampler"], meta_fields=[])
@dataclass(frozen=True)
class RunnerState:
    """State on the device between steps; donated to each step and returned by it."""

    pool: KVPool
    sampler: SamplerState

    @classmethod
    def zeros(cls, model: Model, spec: PoolSpec, shapes: BatchShapes) -> RunnerState:
        return cls(KVPool.zeros(spec), SamplerState.zeros(model, shapes))


@dataclass(frozen=True)
class StepFns:
    """The functions of a model's step, to be jitted, on one device or several."""

    run_step: Callable[..., tuple[RunnerState, jax.Array, Logprobs[jax.Array]]]
    embed: Callable[..., tuple[jax.Array, Angles, AttentionMetadata]]
    run_layers: Callable[..., tuple[jax.Array, KVPool]]
    sample_tokens: Callable[..., tuple[SamplerState, jax.Array, Logprobs[jax.Array]]]
    score_hidden: Callable[..., Logprobs[jax.Array]]

    @classmethod
    def of(cls, model: Model) -> StepFns:
        """Return the functions of a model on one device."""
        return cls(
            partial(run_step, model),
            partial(embed, model),
            model.run_layers,
            partial(sample_tokens, model),
            partial(score_hidden, model),
        )


def run_step(
    model: Model, params: Params, state: RunnerState, batch: Batch[jax.Array]
) -> tuple[RunnerState, jax.Array, Logprobs[jax.Array]]:
    """Run one batch: write the KV of its tokens and sample a token for each row.

    Returns:
        The state with the new KV and samples; the samples, i32[num_rows]; their logprobs. Samples
        of padding rows, and of rows that end before their sequence does, are meaningless.
    """
    embed_and_head = model.embed_and_head_leaves(params)
    hidden, angles, metadata = embed(
        model, state.pool.spec, embed_and_head, state.sampler.last_tokens, batch
    )
    hidden, pool = model.run_all_layers(params, hidden, angles, metadata, state.pool)
    sampler, tokens, logprobs = sample_tokens(model, embed_and_head, state.sampler, hidden, batch)
    return RunnerState(pool, sampler), tokens, logprobs


def embed(
    model: Model,
    spec: PoolSpec,
    embed_and_head: Leaves,
    last_tokens: jax.Array,
    batch: Batch[jax.Array],
) -> tuple[jax.Array, Angles, AttentionMetadata]:
    """Embed the batch's tokens and compute their positions.

    Returns:
        Hidden states [num_tokens, hidden_size], and the angles and metadata that all layers share.
    """
    shape = batch.shape
    num_decode, tile = shape.num_decode, shape.tile
    from_device = last_tokens[jnp.maximum(batch.token_source, 0)]
    decode_tokens = jnp.where(batch.token_source >= 0, from_device, batch.tokens[:num_decode])
    tokens = jnp.concatenate([decode_tokens, batch.tokens[num_decode:]])
    # Row of each flat token and its offset within the row: constants of the shape.
    row = np.repeat(np.arange(shape.num_rows), [1] * num_decode + [tile] * shape.num_tiles)
    offset = np.concatenate([np.zeros(num_decode), np.tile(np.arange(tile), shape.num_tiles)])
    offset = offset.astype(np.int32)
    positions = batch.query_start[row] + offset
    page_table = jnp.asarray(batch.page_table)
    page = page_table.at[row, positions // spec.page_size].get(mode="clip")
    kv_slots = page * spec.page_size + positions % spec.page_size
    metadata = AttentionMetadata(
        page_table=page_table,
        query_start=jnp.asarray(batch.query_start),
        query_len=jnp.asarray(batch.query_len),
        write_kv_slots=jnp.where(offset < batch.query_len[row], kv_slots, spec.num_kv_slots),
        num_decode=num_decode,
        tile=tile,
    )
    return *model.embed(embed_and_head, tokens, positions), metadata


def sample_tokens(
    model: Model,
    embed_and_head: Leaves,
    state: SamplerState,
    hidden: jax.Array,  # [num_tokens, hidden_size]
    batch: Batch[jax.Array],
) -> tuple[SamplerState, jax.Array, Logprobs[jax.Array]]:
    """Sample the token after each row's last query token, i32[num_rows]; see ``sample``."""
    shape = batch.shape
    starts = np.concatenate([np.arange(shape.num_decode), _tile_starts(shape)]).astype(np.int32)
    last = starts + jnp.maximum(batch.query_len - 1, 0)
    logits = model.compute_logits(embed_and_head, hidden[last])
    position = batch.query_start + batch.query_len
    rows = batch.sampling
    tokens, logprobs = sample(logits, rows, state.penalties, state.token_masks, position)
    seq_slot = rows.seq_slot
    state = SamplerState(
        last_tokens=state.last_tokens.at[seq_slot].set(tokens, mode="drop"),
        penalties=state.penalties.count(seq_slot, tokens),
        token_masks=state.token_masks,
        hidden=jax.lax.dynamic_update_slice(state.hidden, hidden, (0, 0)),
    )
    return state, tokens, logprobs


def score_hidden(
    model: Model,
    embed_and_head: Leaves,
    hidden: jax.Array,  # [num_states, hidden_size]
    start: jax.Array,  # i32[]
    targets: jax.Array,  # i32[SCORE_CHUNK_LEN]
) -> Logprobs[jax.Array]:
    """Return the logprobs of ``targets[i]`` given the hidden state ``start + i``."""
    states = jax.lax.dynamic_slice_in_dim(hidden, start, len(targets))
    return score(model.compute_logits(embed_and_head, states), targets)


def _tile_starts(shape: BatchShape) -> np.ndarray:
    """Return the index of each tile's first flat token, i32[num_tiles]."""
    return shape.num_decode + np.arange(shape.num_tiles) * shape.tile
