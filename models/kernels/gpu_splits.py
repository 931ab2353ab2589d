"""Split contexts, so that few rows fill a GPU: attend to the splits in parallel, then merge them.

This is Flash-Decoding (pytorch.org/blog/flash-decoding): each split returns the softmax output over
its own positions, and its log-sum-exp gives its weight among the splits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

MAX_SPLITS, PROGRAMS = 16, 512  # enough programs to fill a device of some 100 processors


def num_splits(num_programs: int) -> int:
    """Return the number of splits per context for a kernel with ``num_programs`` programs."""
    return max(1, min(MAX_SPLITS, PROGRAMS // num_programs))


def merge_splits(
    outs: jax.Array,  # [..., splits, G, H]
    lse: jax.Array,  # f32[..., splits, G], log-sum-exp; very negative for a split without positions
) -> jax.Array:  # f32[..., G, H]
    """Return the output of attention to all splits at once."""
    weights = jax.nn.softmax(lse, axis=-2)
    return (outs.astype(jnp.float32) * weights[..., None]).sum(-3)
