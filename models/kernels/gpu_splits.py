"""A context in splits, so that few rows fill a GPU: attended side by side and joined afterwards.

Flash-Decoding's way (pytorch.org/blog/flash-decoding): each split has the softmax of what it saw,
and the logarithm of what it was divided by says what it weighs beside the others.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

MAX_SPLITS, PROGRAMS = 16, 512  # enough programs to fill a device of some 100 processors


def num_splits(num_programs: int) -> int:
    """Into how many splits a kernel cuts each context, that has so many programs without."""
    return max(1, min(MAX_SPLITS, PROGRAMS // num_programs))


def join(
    outs: jax.Array,  # [..., splits, G, H]
    logs: jax.Array,  # f32[..., splits, G], of the sum of exponentials; very negative: saw nothing
) -> jax.Array:  # f32[..., G, H]
    """What attention to all splits at once would have given."""
    weights = jax.nn.softmax(logs, axis=-2)
    return (outs.astype(jnp.float32) * weights[..., None]).sum(-3)
