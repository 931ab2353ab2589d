"""Scales of blocks that were quantised before, found again, so that their values are kept.

The values of such a block are a few whole steps of its scale apart, not always as many as the
format has: in Q4_0 of GGUF one end is 8 steps from zero and the other at most 7; in Q4_K the values
of a block need not reach both ends. Rounding them to other steps would be a second loss.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Values have float32's rounding, which moves them by less; 32 others are never so near.
_TOLERANCE = 1 / 32
_SAMPLE = 256  # blocks
# Weights that were not quantised have no divisor.
_LEAST_SHARE = 0.5


def find_scales(blocks: np.ndarray, scales: np.ndarray, others: Sequence[np.ndarray]) -> np.ndarray:
    """Return ``scales``; where it is no divisor of a block, the first of ``others`` that is.

    The values of a block are all multiples of a divisor.

    Args:
        blocks: f32[..., pairs, 2], finite; a sample says whether all are looked at.
        scales: f32[...], as each of ``others``.
    """
    found = scales.copy()
    sample = np.arange(0, scales.size, max(1, scales.size // _SAMPLE))
    kept = _are_divisors(blocks, scales, sample)
    with_others = np.any(
        [kept, *(_are_divisors(blocks, scale, sample) for scale in others)], axis=0
    )
    if kept.all() or with_others.mean() < _LEAST_SHARE:
        return found
    left = np.arange(scales.size)
    for scale in (scales, *others):
        are_divisors = _are_divisors(blocks, scale, left)
        found.flat[left[are_divisors]] = scale.flat[left[are_divisors]]
        left = left[~are_divisors]
    return found


def _are_divisors(blocks: np.ndarray, scales: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return bool[num_chosen]; ``chosen`` are indices as of flat arrays."""
    values, scale = blocks[np.unravel_index(chosen, scales.shape)], scales.flat[chosen]
    steps = values / np.where(scale > 0, scale, 1)[:, None, None]
    distances: np.ndarray = np.abs(steps - np.rint(steps))
    are_divisors: np.ndarray = distances.max(axis=(1, 2)) < _TOLERANCE
    return are_divisors
