"""Euclidean projections onto convex sets, for the player that maximises.

A pytree is taken as one vector: a ball is a ball of all its leaves together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
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
    vector, unravel = ravel_pytree(tree)
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
        vector, unravel = ravel_pytree(tree)
        # Squares of entries over the largest neither overflow nor vanish.
        largest = jnp.abs(vector).max()
        norm = largest * jnp.linalg.norm(vector / jnp.where(largest > 0, largest, 1))
        projected: Tree = unravel(vector * (radius / jnp.maximum(norm, radius)))
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
