"""Rotary position embedding (RoPE): frequencies, angles and the rotation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

# Cosines and sines of every token, each f32[num_ropes, T, 1, rotary_dim / 2].
Angles = tuple[jax.Array, jax.Array]


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Parameters of RoPE; each kind reads only the fields after ``kind`` that it needs.

    ``linear`` divides all frequencies by ``factor``.
    ``llama3`` is the frequency scaling of Llama 3.1, ``yarn`` that of YaRN (arXiv 2309.00071),
    ``longrope`` that of LongRoPE (arXiv 2402.13753), which divides each frequency by its own
    factor.

    Attributes:
        rotary_fraction: fraction of a head's dimensions, from the first, that RoPE rotates.
        original_max_len: context length in tokens before the model's context was extended.
        factors: divisors of ``longrope``, one per frequency.
        short_factors: divisors of ``longrope`` if no sequence is longer than ``original_max_len``.
        attention_factor: factor of cosines and sines, in any kind.
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_len: int = 8192
    rotary_fraction: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    factors: tuple[float, ...] = ()
    short_factors: tuple[float, ...] = ()
    attention_factor: float = 1.0

    def rotary_dim(self, head_dim: int) -> int:
        """Return the number of a head's dimensions that RoPE rotates."""
        return int(head_dim * self.rotary_fraction)

    def for_len(self, max_len: int) -> RopeConfig:
        """Return the config for sequences of up to ``max_len`` tokens: it selects the factors.

        transformers switches factors when a conversation outgrows the original length, and
        recomputes all of its KV. A cached block must not depend on later tokens, so one set of
        factors serves all sequences here.
        """
        is_short = self.kind == "longrope" and max_len <= self.original_max_len
        return replace(self, factors=self.short_factors) if is_short else self


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Return radians per token of each pair of dimensions, f32[rotary_dim / 2], scaled by kind.

    Computed in float64 and rounded once. llama3 divides the frequencies of long wavelengths by
    ``factor``, keeps those of short wavelengths, and interpolates between. yarn does the same by
    the number of turns within the original context, with a linear ramp over dimensions.
    """
    dim = rope.rotary_dim(head_dim)
    frequencies = rope.theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    if rope.kind == "linear":
        frequencies = frequencies / rope.factor
    elif rope.kind == "llama3":
        wavelengths = 2 * math.pi / frequencies
        low, high = rope.low_freq_factor, rope.high_freq_factor
        kept = (rope.original_max_len / wavelengths - low) / (high - low)  # unscaled fraction
        kept = np.clip(kept, 0.0, 1.0)
        frequencies = frequencies * (kept + (1 - kept) / rope.factor)
    elif rope.kind == "yarn":
        low = max(math.floor(_dimension_with_turns(rope.beta_fast, rope, dim)), 0)
        high = min(math.ceil(_dimension_with_turns(rope.beta_slow, rope, dim)), dim - 1)
        ramp = (np.arange(dim // 2) - low) / max(high - low, 0.001)
        kept = 1 - np.clip(ramp, 0.0, 1.0)
        frequencies = frequencies * (kept + (1 - kept) / rope.factor)
    elif rope.kind == "longrope":
        frequencies = frequencies / np.array(rope.factors)
    return frequencies.astype(np.float32)


def rope_angles(
    ropes: Sequence[RopeConfig],  # with the same rotary_dim
    head_dim: int,
    positions: jax.Array,  # i32[T]
) -> Angles:
    """Return the cosines and sines of every token under each config, computed once for all layers.

    ``rotate`` takes them for one config.
    """
    cosines, sines = [], []
    for rope in ropes:
        frequencies = jnp.asarray(inverse_frequencies(rope, head_dim))
        angles = positions[:, None, None].astype(jnp.float32) * frequencies
        cosines.append(jnp.cos(angles) * rope.attention_factor)
        sines.append(jnp.sin(angles) * rope.attention_factor)
    return jnp.stack(cosines), jnp.stack(sines)


def rotate(
    x: jax.Array,  # [T, N, H]
    cos: jax.Array,  # f32[T, 1, rotary_dim / 2]
    sin: jax.Array,  # f32[T, 1, rotary_dim / 2]
) -> jax.Array:
    """Apply RoPE to heads.

    Dimension i is paired with i + rotary_dim / 2 (half-split, as in Hugging Face weights).
    """
    half = cos.shape[-1]
    x32 = x.astype(jnp.float32)
    first, second = x32[..., :half], x32[..., half : 2 * half]
    parts = [first * cos - second * sin, second * cos + first * sin, x32[..., 2 * half :]]
    return jnp.concatenate(parts[: 3 if 2 * half < x.shape[-1] else 2], axis=-1).astype(x.dtype)


def _dimension_with_turns(num_turns: float, rope: RopeConfig, dim: int) -> float:
    """Return the pair of dimensions with that many turns in the original context (YaRN, eq. 17)."""
    return (
        dim
        * math.log(rope.original_max_len / (num_turns * 2 * math.pi))
        / (2 * math.log(rope.theta))
    )
