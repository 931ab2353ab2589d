"""Sampling within the step: each row with its own settings, seed and penalty state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from kvflow_jax.requests.sampling_params import MAX_LOGPROBS

# The arrays of one record: numpy on the host, JAX's within the step and in its results.
Array = TypeVar("Array", np.ndarray, jax.Array)

MIN_TOP_P = 1e-9
SCORE_CHUNK_LEN = 64  # prompt tokens whose logits are computed at once
_BLOCK = 256  # vocabulary entries summed together by the two-level inverse CDF

# Bits of ``PenaltyState.counts``: occurrences in the output, and two flags.
_COUNT, _IN_PROMPT, _IS_STOP = (1 << 28) - 1, 1 << 28, 1 << 29


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingRows(Generic[Array]):
    """Sampling settings of each row. The first fields are the columns that ``PARAMS`` defines."""

    temperature: Array  # f32[n], 0: greedy
    top_k: Array  # i32[n], 0: all tokens
    top_p: Array  # f32[n]
    min_p: Array  # f32[n], relative to the likeliest token's probability
    repetition_penalty: Array  # f32[n], 1: none
    frequency_penalty: Array  # f32[n]
    presence_penalty: Array  # f32[n]
    top_n_sigma: Array  # f32[n], 0: all tokens

    seq_slot: Array  # i32[n], where state and sample are kept; out of range: nowhere
    mask_slot: Array  # i32[n], where the token mask is
    seed: Array  # u32[n, 2]
    needs_sampler_state: Array  # bool[n], whether penalties, bias or bans are on
    bans_stops: Array  # bool[n], whether stop tokens are banned (min_tokens)
    wants_logprobs: Array  # bool[n]
    has_grammar: Array  # bool[n], whether the token mask applies


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PenaltyState:
    """Token counts and logit bias of each running request, which penalties and bans read.

    It is kept on the device, because a step starts before the host has seen the previous step's
    samples. A seq_slot's rows are stale unless its request uses them.
    """

    counts: jax.Array  # i32[num_seq_slots, vocab_size], with the flags _IN_PROMPT and _IS_STOP
    bias: jax.Array  # f32[num_seq_slots, vocab_size]

    @classmethod
    def zeros(cls, num_seq_slots: int, vocab_size: int) -> PenaltyState:
        shape = (num_seq_slots, vocab_size)
        return cls(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))

    def load_sequence_state(self, sequence_state: SequenceState[jax.Array]) -> PenaltyState:
        """Return the state with one seq_slot's rows replaced."""
        vocab = self.counts.shape[1]
        index = jnp.arange(len(sequence_state.tokens))
        is_prompt = index < sequence_state.num_prompt
        is_output = (index >= sequence_state.num_prompt) & (index < sequence_state.num_tokens)
        row = jnp.zeros(vocab, jnp.int32)
        # The prompt flag is set before the counts are added, and the stop flag is added last: max
        # would overwrite either.
        row = row.at[sequence_state.tokens].max(jnp.where(is_prompt, _IN_PROMPT, 0))
        row = row.at[sequence_state.tokens].add(is_output.astype(jnp.int32))
        stops = jnp.zeros(vocab, jnp.int32).at[sequence_state.stop_ids].max(_IS_STOP, mode="drop")
        bias = (
            jnp.zeros(vocab, jnp.float32)
            .at[sequence_state.bias_ids]
            .add(sequence_state.bias, mode="drop")
        )
        return PenaltyState(
            self.counts.at[sequence_state.seq_slot].set(row + stops),
            self.bias.at[sequence_state.seq_slot].set(bias),
        )

    def count(self, seq_slot: jax.Array, token: jax.Array) -> PenaltyState:
        """Return the state after a new ``token`` (i32[n]) for each ``seq_slot`` (i32[n])."""
        return PenaltyState(self.counts.at[seq_slot, token].add(1, mode="drop"), self.bias)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SequenceState(Generic[Array]):
    """Tokens, stop tokens and bias of one request. Ids at or past vocab_size are padding."""

    seq_slot: np.int32 | Array  # i32[]
    tokens: Array  # i32[max_len], prompt and output; past num_tokens any valid token
    num_prompt: np.int32 | Array  # i32[]
    num_tokens: np.int32 | Array  # i32[]
    stop_ids: Array  # i32[max_stops]
    bias_ids: Array  # i32[max_bias]
    bias: Array  # f32[max_bias]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Logprobs(Generic[Array]):
    """Natural logarithms of the model's probabilities, before bias, penalties and temperature."""

    chosen: Array  # f32[n], of the sampled or given token
    top_ids: Array  # i32[n, MAX_LOGPROBS], likeliest first
    top: Array  # f32[n, MAX_LOGPROBS]


def sample(
    logits: jax.Array,  # f32[n, vocab_size]
    rows: SamplingRows[jax.Array],
    penalties: PenaltyState,
    token_masks: jax.Array,  # i32[num_mask_slots, ceil(vocab_size / 32)], see ``Matcher.mask``
    position: jax.Array,  # i32[n], position of the new token
) -> tuple[jax.Array, Logprobs[jax.Array]]:
    """Sample a token for each row, i32[n], and return its logprobs (zeros if no row wants any).

    A sample depends only on the row's logits, settings, seed and position, never on other rows.
    Bias, ban of stop tokens, penalties, token mask, temperature, top-n-sigma, min-p, top-k and
    top-p apply in this order. Tokens that tie at a threshold are all kept.
    """
    adjusted = jax.lax.cond(
        rows.needs_sampler_state.any(), partial(_adjust, logits, rows, penalties), lambda: logits
    )
    adjusted = jax.lax.cond(
        rows.has_grammar.any(),
        lambda: _mask(adjusted, logits, rows, token_masks),
        lambda: adjusted,
    )
    greedy = jnp.argmax(adjusted, axis=-1).astype(jnp.int32)
    tokens = jax.lax.cond(
        (rows.temperature > 0).any(),
        lambda: jnp.where(rows.temperature > 0, _draw(adjusted, rows, position), greedy),
        lambda: greedy,
    )
    n, vocab = logits.shape
    num_top = min(MAX_LOGPROBS, vocab)
    zeros = Logprobs(
        jnp.zeros(n), jnp.zeros((n, num_top), jnp.int32), jnp.zeros((n, num_top), jnp.float32)
    )
    logprobs = jax.lax.cond(rows.wants_logprobs.any(), lambda: score(logits, tokens), lambda: zeros)
    return tokens, logprobs


def score(
    logits: jax.Array,  # f32[n, vocab_size]
    tokens: jax.Array,  # i32[n]
) -> Logprobs[jax.Array]:
    """Return the logprobs of given tokens, and of the likeliest tokens beside them."""
    norm = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    top, top_ids = jax.lax.top_k(logits, min(MAX_LOGPROBS, logits.shape[-1]))
    return Logprobs(chosen - norm, top_ids.astype(jnp.int32), top - norm[:, None])


def _adjust(logits: jax.Array, rows: SamplingRows[jax.Array], penalties: PenaltyState) -> jax.Array:
    """Apply bias, bans and penalties to rows that use them, as vLLM and transformers define them.

    Repetition penalty: arXiv 1909.05858.
    """
    counts = penalties.counts.at[rows.seq_slot].get(mode="clip")  # i32[n, vocab_size]
    count = counts & _COUNT
    changed = logits + penalties.bias.at[rows.seq_slot].get(mode="clip")
    is_banned = rows.bans_stops[:, None] & (counts & _IS_STOP != 0)
    changed = jnp.where(is_banned, -jnp.inf, changed)
    repetition = rows.repetition_penalty[:, None]
    repeated = jnp.where(changed > 0, changed / repetition, changed * repetition)
    is_in_sequence = counts & (_COUNT | _IN_PROMPT) != 0
    # A penalty of 1 changes no bit, and infinite logits stay infinite.
    changed = jnp.where(is_in_sequence & (repetition != 1), repeated, changed)
    frequency, presence = rows.frequency_penalty[:, None], rows.presence_penalty[:, None]
    changed -= frequency * count + presence * (count > 0)
    return jnp.where(rows.needs_sampler_state[:, None], changed, logits)


def _mask(
    adjusted: jax.Array, logits: jax.Array, rows: SamplingRows[jax.Array], token_masks: jax.Array
) -> jax.Array:
    """Exclude the tokens that the grammar of a row does not allow.

    A ban of stop tokens may exclude all that it allows. Then the ban gives way.
    """
    words = token_masks.at[rows.mask_slot].get(mode="clip")
    bits = words[:, :, None] >> jnp.arange(32) & 1  # [n, num_words, 32]
    is_allowed = bits.reshape(len(words), -1)[:, : logits.shape[1]] != 0
    masked = jnp.where(is_allowed, adjusted, -jnp.inf)
    is_empty = masked.max(axis=-1, keepdims=True) == -jnp.inf
    masked = jnp.where(is_empty & is_allowed, logits, masked)
    return jnp.where(rows.has_grammar[:, None], masked, adjusted)


def _draw(logits: jax.Array, rows: SamplingRows[jax.Array], position: jax.Array) -> jax.Array:
    # Subtract the maximum first: divided by a small temperature it would overflow.
    scaled = logits - logits.max(axis=-1, keepdims=True)
    scaled /= jnp.where(rows.temperature > 0, rows.temperature, 1.0)[:, None]
    scaled = jax.lax.cond(
        (rows.top_n_sigma > 0).any(), partial(_cut_sigma, scaled, rows.top_n_sigma), lambda: scaled
    )
    probs = jax.nn.softmax(scaled, axis=-1)
    probs = jnp.where(probs >= rows.min_p[:, None] * probs.max(-1, keepdims=True), probs, 0.0)
    is_cut = (rows.top_k > 0) | (rows.top_p < 1)
    probs = jax.lax.cond(
        is_cut.any(), lambda: _truncate(probs, rows.top_k, rows.top_p), lambda: probs
    )
    return _inverse_cdf(probs, jax.vmap(_uniform)(rows.seed, position))


def _uniform(seed: jax.Array, position: jax.Array) -> jax.Array:
    key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), position)
    return jax.random.uniform(key)


def _cut_sigma(logits: jax.Array, num_sigma: jax.Array) -> jax.Array:
    """Exclude logits more than ``num_sigma`` standard deviations below the highest, which is 0.

    Temperature scales logits and deviation alike and changes nothing. Banned tokens, whose logit is
    infinitely low, are no part of the deviation (arXiv 2411.07641; llama.cpp's ``top_n_sigma``).
    """
    sigma = logits.std(axis=-1, keepdims=True, where=logits > -jnp.inf)
    is_low = logits < -num_sigma[:, None] * sigma
    return jnp.where((num_sigma > 0)[:, None] & is_low, -jnp.inf, logits)


def _truncate(probs: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Zero the entries that top-k, then top-p, cuts off.

    The threshold comes from a bisection over the bits of the floats, 31 passes over the row, which
    is far faster than a sort. It is exact, because positive floats order as their bits do.
    """
    vocab = probs.shape[-1]
    k = jnp.where(top_k > 0, top_k, vocab)
    kept = _cut(probs, lambda at_least: at_least.sum(-1) >= k)
    # A tiny top_p may be 0 in float32: the likeliest token must stay.
    target = jnp.maximum(top_p, MIN_TOP_P) * kept.sum(-1)
    inner = _cut(kept, lambda at_least: jnp.where(at_least, kept, 0.0).sum(-1) >= target)
    return jnp.where((top_p < 1)[:, None], inner, kept)


def _cut(probs: jax.Array, is_enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Keep the entries at or above the largest threshold for which ``is_enough`` is true."""
    bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

    def halve(i: jax.Array, threshold: jax.Array) -> jax.Array:
        higher = threshold | (jnp.int32(1) << (30 - i))
        return jnp.where(is_enough(bits >= higher[:, None]), higher, threshold)

    threshold = jax.lax.fori_loop(0, 31, halve, jnp.zeros(probs.shape[0], jnp.int32))
    return jnp.where(bits >= threshold[:, None], probs, 0.0)


def _inverse_cdf(probs: jax.Array, uniform: jax.Array) -> jax.Array:
    """Return the index at which the cumulative sum of each row passes ``uniform`` of its total.

    ``probs`` is f32[n, vocab_size], ``uniform`` f32[n], the result i32[n]. Two levels avoid a
    cumulative sum over the whole vocabulary. An entry of zero probability is never returned,
    because the sum must rise past the target at the entry.
    """
    n, vocab = probs.shape
    blocks = jnp.pad(probs, ((0, 0), (0, -vocab % _BLOCK))).reshape(n, -1, _BLOCK)
    block_ends = jnp.cumsum(blocks.sum(-1), axis=-1)  # [n, num_blocks]
    target = uniform * block_ends[:, -1]
    block = _first_above(block_ends, target)
    before = jnp.where(block > 0, jnp.take_along_axis(block_ends, block[:, None] - 1, 1)[:, 0], 0.0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]  # [n, _BLOCK]
    ends = jnp.cumsum(inside, axis=-1)
    return (block * _BLOCK + _first_above(ends, target - before)).astype(jnp.int32)


def _first_above(rising: jax.Array, target: jax.Array) -> jax.Array:
    """Return the first index at which a rising sum passes the target; if none, its last rise."""
    above = rising > target[:, None]
    last_rise = jnp.argmax(rising >= rising[:, -1:], axis=-1)
    return jnp.where(above.any(-1), jnp.argmax(above, axis=-1), last_rise)
