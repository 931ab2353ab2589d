"""Sampling inside the step: every row by its own settings, its own seed and its own sequence_state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MIN_TOP_P = 1e-9
MAX_LOGPROBS = 20  # alternatives reported beside a token
SCORE_CHUNK_LEN = 64  # prompt tokens whose logits are made at once
_BLOCK = 256  # vocabulary entries summed together by the two-level inverse CDF

# Facts of a token in a slot's memory: how often the output holds it, and two flags.
_COUNT, _IN_PROMPT, _IS_STOP = (1 << 28) - 1, 1 << 28, 1 << 29


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "seq_slot",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition",
        "frequency",
        "presence",
        "seed",
        "uses_memory",
        "bans_stops",
        "wants_logprobs",
    ],
    meta_fields=[],
)
@dataclass(frozen=True)
class SamplingRows:
    """How the token after each row is chosen. Numpy on the host, traced within the step."""

    seq_slot: Any  # i32[n], whose memory and last token it is; out of range: nobody's
    temperature: Any  # f32[n], 0 is greedy
    top_k: Any  # i32[n], 0 is all
    top_p: Any  # f32[n]
    min_p: Any  # f32[n], of the likeliest token's probability
    repetition: Any  # f32[n], 1 is none
    frequency: Any  # f32[n]
    presence: Any  # f32[n]
    seed: Any  # u32[n, 2]
    uses_memory: Any  # bool[n], whether any of penalties, bias and bans is on
    bans_stops: Any  # bool[n], the tokens that would end the text may not come yet
    wants_logprobs: Any  # bool[n]

    @classmethod
    def empty(cls, num_rows: int, num_slots: int) -> SamplingRows:
        """Rows that belong to nobody."""
        return cls(
            seq_slot=np.full(num_rows, num_slots, np.int32),
            temperature=np.zeros(num_rows, np.float32),
            top_k=np.zeros(num_rows, np.int32),
            top_p=np.ones(num_rows, np.float32),
            min_p=np.zeros(num_rows, np.float32),
            repetition=np.ones(num_rows, np.float32),
            frequency=np.zeros(num_rows, np.float32),
            presence=np.zeros(num_rows, np.float32),
            seed=np.zeros((num_rows, 2), np.uint32),
            uses_memory=np.zeros(num_rows, np.bool_),
            bans_stops=np.zeros(num_rows, np.bool_),
            wants_logprobs=np.zeros(num_rows, np.bool_),
        )


@partial(jax.tree_util.register_dataclass, data_fields=["facts", "bias"], meta_fields=[])
@dataclass(frozen=True)
class PenaltyState:
    """What each slot's sequence holds, and what is to be added to its logits.

    Lives on the device, because a step runs before the host has seen the token of the one before.
    A slot's memory means something only while its request uses it.
    """

    facts: jax.Array  # i32[num_slots, vocab_size]
    bias: jax.Array  # f32[num_slots, vocab_size]

    @classmethod
    def zeros(cls, num_slots: int, vocab_size: int) -> PenaltyState:
        shape = (num_slots, vocab_size)
        return cls(jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))

    def load_sequence_state(self, sequence_state: SequenceState) -> PenaltyState:
        """The memory with one slot's row made anew."""
        vocab = self.facts.shape[1]
        place = jnp.arange(len(sequence_state.tokens))
        is_prompt = place < sequence_state.num_prompt
        is_output = (place >= sequence_state.num_prompt) & (place < sequence_state.num_tokens)
        row = jnp.zeros(vocab, jnp.int32)
        # The flag before the counts, and both before the other flag: max would overwrite.
        row = row.at[sequence_state.tokens].max(jnp.where(is_prompt, _IN_PROMPT, 0))
        row = row.at[sequence_state.tokens].add(is_output.astype(jnp.int32))
        stops = jnp.zeros(vocab, jnp.int32).at[sequence_state.stop_ids].max(_IS_STOP, mode="drop")
        bias = (
            jnp.zeros(vocab, jnp.float32)
            .at[sequence_state.bias_ids]
            .add(sequence_state.bias, mode="drop")
        )
        return PenaltyState(
            self.facts.at[sequence_state.seq_slot].set(row + stops),
            self.bias.at[sequence_state.seq_slot].set(bias),
        )

    def count(self, slot: jax.Array, token: jax.Array) -> PenaltyState:
        """The memory after each slot (i32[n]) has been given its next token (i32[n])."""
        return PenaltyState(self.facts.at[slot, token].add(1, mode="drop"), self.bias)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["seq_slot", "tokens", "num_prompt", "num_tokens", "stop_ids", "bias_ids", "bias"],
    meta_fields=[],
)
@dataclass(frozen=True)
class SequenceState:
    """What a slot's memory is made of. Ids at or past the vocabulary are padding."""

    seq_slot: Any  # i32[]
    tokens: Any  # i32[any], prompt and output; past num_tokens any token of the vocabulary
    num_prompt: Any  # i32[]
    num_tokens: Any  # i32[]
    stop_ids: Any  # i32[any]
    bias_ids: Any  # i32[any]
    bias: Any  # f32[any]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["chosen", "top_ids", "top"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of the model's own probabilities: before bias, penalties, temperature."""

    chosen: Any  # f32[n], of the token that was chosen
    top_ids: Any  # i32[n, MAX_LOGPROBS], likeliest first
    top: Any  # f32[n, MAX_LOGPROBS]


def sample(
    logits: jax.Array,  # f32[n, vocab_size]
    rows: SamplingRows,
    memory: PenaltyState,
    position: jax.Array,  # i32[n], of the token that is sampled
) -> tuple[jax.Array, Logprobs]:
    """Choose a token a row, i32[n]; the logprobs are zeros where no row wants any.

    A draw depends on the row's own settings, seed and position alone, never on the batch around
    it. Bias, ban of stop tokens, penalties, temperature, min-p, top-k and top-p apply in this
    order. Ties at a threshold stay in, all of them.
    """
    adjusted = jax.lax.cond(
        rows.uses_memory.any(), partial(_adjust, logits, rows, memory), lambda: logits
    )
    greedy = jnp.argmax(adjusted, axis=-1).astype(jnp.int32)
    tokens = jax.lax.cond(
        (rows.temperature > 0).any(),
        lambda: jnp.where(rows.temperature > 0, _draw(adjusted, rows, position), greedy),
        lambda: greedy,
    )
    n, vocab = logits.shape
    num_top = min(MAX_LOGPROBS, vocab)
    nothing = Logprobs(
        jnp.zeros(n), jnp.zeros((n, num_top), jnp.int32), jnp.zeros((n, num_top), jnp.float32)
    )
    logprobs = jax.lax.cond(
        rows.wants_logprobs.any(), lambda: score(logits, tokens), lambda: nothing
    )
    return tokens, logprobs


def score(
    logits: jax.Array,  # f32[n, vocab_size]
    tokens: jax.Array,  # i32[n]
) -> Logprobs:
    """How likely given tokens are, and what would have been likelier."""
    norm = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
    top, top_ids = jax.lax.top_k(logits, min(MAX_LOGPROBS, logits.shape[-1]))
    return Logprobs(chosen - norm, top_ids.astype(jnp.int32), top - norm[:, None])


def _adjust(logits: jax.Array, rows: SamplingRows, memory: PenaltyState) -> jax.Array:
    """Bias, ban and penalties, as vLLM and transformers define them, where rows use them."""
    facts = memory.facts.at[rows.seq_slot].get(mode="clip")  # [n, vocab]
    count = facts & _COUNT
    changed = logits + memory.bias.at[rows.seq_slot].get(mode="clip")
    is_banned = rows.bans_stops[:, None] & (facts & _IS_STOP != 0)
    changed = jnp.where(is_banned, -jnp.inf, changed)
    repetition = rows.repetition[:, None]
    repeated = jnp.where(changed > 0, changed / repetition, changed * repetition)
    is_known = facts & (_COUNT | _IN_PROMPT) != 0
    # At 1 exactly nothing changes; infinities stay what they are.
    changed = jnp.where(is_known & (repetition != 1), repeated, changed)
    changed -= rows.frequency[:, None] * count + rows.presence[:, None] * (count > 0)
    return jnp.where(rows.uses_memory[:, None], changed, logits)


def _draw(logits: jax.Array, rows: SamplingRows, position: jax.Array) -> jax.Array:
    # The peak is subtracted first: divided by a small temperature it would overflow.
    scaled = logits - logits.max(axis=-1, keepdims=True)
    scaled /= jnp.where(rows.temperature > 0, rows.temperature, 1.0)[:, None]
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


def _truncate(probs: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """Zero what top-k, then top-p, leaves out.

    The threshold is found by bisection over the bits of the floats, 31 passes over the row, where
    a sort would take far longer; positive floats order as their bits do, so it is exact.
    """
    vocab = probs.shape[-1]
    k = jnp.where(top_k > 0, top_k, vocab)
    kept = _cut(probs, lambda at_least: at_least.sum(-1) >= k)
    # Never 0, which a float32 top_p may have become: the likeliest token stays.
    target = jnp.maximum(top_p, MIN_TOP_P) * kept.sum(-1)
    inner = _cut(kept, lambda at_least: jnp.where(at_least, kept, 0.0).sum(-1) >= target)
    return jnp.where((top_p < 1)[:, None], inner, kept)


def _cut(probs: jax.Array, is_enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Keep entries at or above the largest threshold for which ``is_enough`` holds."""
    bits = jax.lax.bitcast_convert_type(probs, jnp.int32)

    def halve(i: jax.Array, threshold: jax.Array) -> jax.Array:
        higher = threshold | (jnp.int32(1) << (30 - i))
        return jnp.where(is_enough(bits >= higher[:, None]), higher, threshold)

    threshold = jax.lax.fori_loop(0, 31, halve, jnp.zeros(probs.shape[0], jnp.int32))
    return jnp.where(bits >= threshold[:, None], probs, 0.0)


def _inverse_cdf(probs: jax.Array, uniform: jax.Array) -> jax.Array:
    """The entry where the running sum of ``probs`` [n, vocab] passes ``uniform`` [n] of its total.

    In two levels, so that no running sum over the whole vocabulary is needed. An entry of zero
    probability is never chosen: the sum must rise past the target at the entry.
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
    """First entry of a rising sum that passes the target; its last rise where none does."""
    above = rising > target[:, None]
    last_rise = jnp.argmax(rising >= rising[:, -1:], axis=-1)
    return jnp.where(above.any(-1), jnp.argmax(above, axis=-1), last_rise)
