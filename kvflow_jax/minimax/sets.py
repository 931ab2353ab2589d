"""Euclidean projections onto convex sets, for the player that maximises.

A pytree is taken as one vector: a ball is a ball of all its leaves together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from kvflow_jax.errors import ConfigError

Tree = TypeVar("Tree")


def simplex(tree: Tree) -> Tree:
    """Project onto the probability simplex: not negative, sum 1.

    The result is ``max(v - t, 0)`` with the t that makes it sum to 1, found by sorting (Held, Wolfe
    and Crowder 1974; Duchi et al. 2008).

    Args:
        tree: pytree of f[...] with d entries in all.
    """
    vector, unravel = _ravel(tree)
    # The projection does not see a constant that all entries share; without it no digits are lost.
    shifted = vector - vector.max()
    descending = jnp.sort(shifted, descending=True)
    # threshold[k] is t if the k + 1 largest entries are the positive ones of the result.
    count = jnp.arange(1, vector.size + 1, dtype=vector.dtype)
    threshold = (jnp.cumsum(descending) - 1) / count
    num_positive = jnp.sum(descending > threshold)
    projected: Tree = unravel(jnp.maximum(shifted - threshold[num_positive - 1], 0))
    return projected


def ball(radius: float) -> Callable[[Tree], Tree]:
    """Return the projection onto the ball of this radius around 0.

    Raises:
        ConfigError: The radius is not positive.
    """
    if not radius > 0:
        raise ConfigError(f"the radius of a ball must be positive, not {radius}")

    def project(tree: Tree) -> Tree:
        vector, unravel = _ravel(tree)
        # Squares of entries over the largest neither overflow nor vanish; nor does 1 / scale, by
        # which XLA multiplies. The result does not depend on the scale.
        tiny = np.finfo(vector.dtype).tiny
        scale = jnp.clip(jnp.abs(vector).max(initial=0), tiny, 1 / tiny)
        scaled = vector / jax.lax.stop_gradient(scale)
        squared = jnp.sum(jnp.square(scaled))
        norm = jnp.sqrt(jnp.where(squared == 0, 1, squared))  # the root has no gradient at 0
        projected: Tree = unravel(
            jnp.where(scale * norm > radius, scaled * (radius / norm), vector)
        )
        return projected

    return project


def box(low: float, high: float) -> Callable[[Tree], Tree]:
    """Return the projection onto the box in which every entry is in [low, high].

    Raises:
        ConfigError: ``low`` is not below ``high``.
    """
    if not low < high:
        raise ConfigError(f"a box needs low < high, not low = {low} and high = {high}")

    def project(tree: Tree) -> Tree:
        projected: Tree = jax.tree.map(lambda leaf: jnp.clip(leaf, low, high), tree)
        return projected

    return project


def _ravel(tree: Tree) -> tuple[jax.Array, Callable[[jax.Array], Tree]]:
    """Return a tree as one vector, float32 or wider, and what makes a tree like it of a vector.

    In narrower dtypes the sums over many entries would overflow, or lose the entries.
    """
    vector, unravel = ravel_pytree(tree)

    def narrow_and_unravel(wide: jax.Array) -> Tree:
        narrow: Tree = unravel(wide.astype(vector.dtype))
        return narrow

    return vector.astype(jnp.promote_types(jnp.float32, vector.dtype)), narrow_and_unravel
