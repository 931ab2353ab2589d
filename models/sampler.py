"""Sampling inside the step: greedy, temperature, top-k and top-p, each row with its own seed."""

from __future__ import annotations

import jax
import jax.numpy as jnp

MIN_TOP_P = 1e-9
_BLOCK = 256  # vocabulary entries summed together by the two-level inverse CDF


def sample(
    logits: jax.Array,  # f32[n, vocab_size]
    temperature: jax.Array,  # f32[n], 0 is greedy
    top_k: jax.Array,  # i32[n], 0 is all
    top_p: jax.Array,  # f32[n]
    seed: jax.Array,  # u32[n, 2]
    position: jax.Array,  # i32[n], of the token that is sampled
) -> jax.Array:
    """Sample a token a row, i32[n].

    A draw depends on the row's seed and position alone, never on the batch around it. Ties at the
    threshold of top-k or top-p stay in, all of them.
    """
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw() -> jax.Array:
        # The peak is subtracted first: divided by a small temperature it would overflow.
        scaled = logits - logits.max(axis=-1, keepdims=True)
        scaled /= jnp.where(temperature > 0, temperature, 1.0)[:, None]
        probs = jax.nn.softmax(scaled, axis=-1)
        is_cut = (top_k > 0) | (top_p < 1)
        probs = jax.lax.cond(is_cut.any(), lambda: _truncate(probs, top_k, top_p), lambda: probs)
        uniform = jax.vmap(_uniform)(seed, position)
        return jnp.where(temperature > 0, _inverse_cdf(probs, uniform), greedy)

    return jax.lax.cond((temperature > 0).any(), draw, lambda: greedy)


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


def _cut(probs: jax.Array, is_enough) -> jax.Array:  # type: ignore[no-untyped-def]
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
