"""Arithmetic on pytrees that the rivals share, in the widths that ``DAdaST`` computes in."""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kvflow_jax.minimax.dadast import check_like
from kvflow_jax.minimax.rule import NodeState

Tree = TypeVar("Tree")


def check_gradients(state: NodeState, grads_x: Any, grads_y: Any) -> None:
    """Raise ``ConfigError`` unless the gradients are trees like the parameters."""
    check_like(grads_x, state.x, "the gradient in x", "x")
    check_like(grads_y, state.y, "the gradient in y", "y")


def move(tree: Tree, stepsize: ArrayLike, direction: Tree) -> Tree:
    """Return ``tree + stepsize * direction``; the stepsize is a scalar."""
    moved: Tree = jax.tree.map(lambda leaf, way: leaf + stepsize * way, tree, direction)
    return moved


def scaled(stepsizes: Tree, direction: Tree) -> Tree:
    """Return the product of two trees, entry by entry."""
    product: Tree = jax.tree.map(lambda rate, way: rate * way, stepsizes, direction)
    return product


def cast_like(tree: Tree, reference: Tree) -> Tree:
    """Return a tree with its leaves in the dtypes of another."""
    cast: Tree = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), tree, reference)
    return cast


def copy(tree: Tree) -> Tree:
    """Return a tree of arrays of its own, so that a state that has both can be donated."""
    copied: Tree = jax.tree.map(jnp.copy, tree)
    return copied


def choose(condition: jax.Array, tree: Tree, other: Tree) -> Tree:
    """Return one of two trees by a scalar condition."""
    chosen: Tree = jax.tree.map(lambda leaf, its: jnp.where(condition, leaf, its), tree, other)
    return chosen


def widen(tree: Tree) -> Tree:
    """Return a tree in float32, or in its own dtype where that is wider."""
    wide: Tree = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, jnp.promote_types(jnp.float32, jnp.result_type(leaf))), tree
    )
    return wide


def wide_zeros(tree: Tree) -> Tree:
    """Return zeros of a tree's shapes, in float32 or in its own dtype where that is wider."""
    zeros: Tree = jax.tree.map(jnp.zeros_like, widen(tree))
    return zeros
