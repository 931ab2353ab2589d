"""D-AdaST: distributed minimax with adaptive stepsizes that the nodes track (arXiv 2406.02939).

The problem is ``min_x max_{y in Y} 1/n sum_i f_i(x, y)`` over n nodes. Node i sees gradients of
its own f_i only, and exchanges messages with its neighbours on a graph with mixing matrix W. Each
f_i is nonconvex in x and strongly concave in y; Y is convex.

One step at node i, with scalars m^x_i and m^y_i that begin at ``start``::

    g^x_i = grad_x f_i(x_i, y_i)                  g^y_i = grad_y f_i(x_i, y_i)
    h^x_i = m^x_i + |g^x_i|^2                     h^y_i = m^y_i + |g^y_i|^2
    x_i  <- x_i - gamma_x max(h^x_i, h^y_i)^-alpha g^x_i
    y_i  <- y_i + gamma_y (h^y_i)^-beta g^y_i
    (x, y, m^x, m^y)_i <- sum_j W_ij (x, y, h^x, h^y)_j          one message
    y_i  <- P_Y(y_i)

The maximum slows x down until y has settled (time-scale separation, TiAda). Mixing the two scalars
is stepsize tracking: without it each node has a stepsize of its own, and the nodes settle where
``sum_i v_i^-alpha grad f_i = 0``, which is no stationary point of f.

The stepsize is taken from h, before the exchange, so that a step takes one message. Taken after it,
as the compact form of the paper can be read, a step takes two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from kvflow_jax.errors import ConfigError

X = TypeVar("X")
Y = TypeVar("Y")
Tree = TypeVar("Tree")
Message = tuple[X, Y, jax.Array, jax.Array]  # x, y and the two sums of squared gradients


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State(Generic[X, Y]):
    """One node's state between two steps.

    The dtype of the two scalars is float32, or that of the parameters if it is wider.

    Attributes:
        x: pytree of f[...], the parameters that minimise.
        y: pytree of f[...], the parameters that maximise.
        accum_x: f32[], m^x: the tracked mean over the nodes of the summed ``|g^x|^2``.
        accum_y: f32[], m^y: likewise of ``|g^y|^2``.
        step: i32[], number of steps taken.
    """

    x: X
    y: Y
    accum_x: jax.Array
    accum_y: jax.Array
    step: jax.Array


@dataclass(frozen=True)
class DAdaST:
    """The rule by which every node steps.

    Theory asks for beta < 1/2 < alpha. No constant of the problem enters, but ``start`` shapes the
    first steps: near 0, the first step in x has the length ``gamma_x |g|^(1 - 2 alpha)``, which is
    the longer the smaller the gradient is.

    Attributes:
        gamma_x: stepsize of x, positive.
        gamma_y: stepsize of y, positive.
        alpha: exponent of x, in (beta, 1).
        beta: exponent of y, in (0, alpha).
        start: first value of both accumulators, not negative.

    Raises:
        ConfigError: A field is out of its range.
    """

    gamma_x: float = 1.0
    gamma_y: float = 1.0
    alpha: float = 0.6
    beta: float = 0.4
    start: float = 1.0

    def __post_init__(self) -> None:
        for name in ("gamma_x", "gamma_y"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ConfigError(f"the stepsize {name} must be positive and finite, not {value}")
        if not 0 < self.beta < self.alpha < 1:
            raise ConfigError(
                "the exponents must be 0 < beta < alpha < 1, so that x slows down before y does; "
                f"not beta = {self.beta} and alpha = {self.alpha}"
            )
        if not (self.start >= 0 and math.isfinite(self.start)):
            raise ConfigError(f"start must be finite and not negative, not {self.start}")

    def init(self, x: X, y: Y) -> State[X, Y]:
        """Return the state of one node before its first step.

        Args:
            x: pytree of f[...], where it begins to minimise.
            y: pytree of f[...], where it begins to maximise; inside the set it is projected onto.

        Raises:
            ConfigError: A leaf is not of a floating dtype, which the message names, or ``start``
                is infinite in the dtype of the scalars.
        """
        x, y = jax.tree_util.tree_map_with_path(_as_parameter, (x, y))
        dtype = accumulator_dtype((x, y))
        if self.start > float(np.finfo(dtype).max):
            raise ConfigError(f"start = {self.start} is infinite in {dtype}, so nothing would move")
        # Two arrays, not one twice: a state can be donated.
        accum_x, accum_y = (jnp.full((), self.start, dtype) for _ in range(2))
        return State(x, y, accum_x, accum_y, jnp.asarray(0, jnp.int32))

    def step(
        self,
        state: State[X, Y],
        grads_x: X,
        grads_y: Y,
        mix: Callable[[Message[X, Y]], Message[X, Y]],
        project: Callable[[Y], Y] | None = None,
    ) -> State[X, Y]:
        """Return the state of one node after a step, which exchanges one message.

        Args:
            state: of this node.
            grads_x: g^x, the gradient of f_i in x at the state; a pytree like ``state.x``, real.
            grads_y: g^y, likewise in y.
            mix: averages a message, the pytree of x and y and both scalars, with those of the
                neighbours: ``Graph.mix`` over a named axis, which sends it as one vector.
            project: the projection P_Y onto the set of y; None: no constraint.

        Raises:
            ConfigError: Gradients and parameters differ in structure or shape, or one is complex.
        """
        check_like(grads_x, state.x, "the gradient in x", "x")
        check_like(grads_y, state.y, "the gradient in y", "y")
        dtype = state.accum_x.dtype
        sum_x = state.accum_x + squared_norm(grads_x, dtype)
        sum_y = state.accum_y + squared_norm(grads_y, dtype)
        x = _move(state.x, -self.gamma_x * power(jnp.maximum(sum_x, sum_y), -self.alpha), grads_x)
        y = _move(state.y, self.gamma_y * power(sum_y, -self.beta), grads_y)
        x, y, accum_x, accum_y = mix((x, y, sum_x, sum_y))
        x, y = _cast_like(x, state.x), _cast_like(y, state.y)
        if project is not None:
            y = project(y)
        return State(x, y, accum_x, accum_y, state.step + 1)


def accumulator_dtype(tree: object) -> jnp.dtype:
    """Return the dtype of the scalars of a state with these parameters, a pytree of f[...]."""
    dtype: jnp.dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(tree))
    return dtype


def squared_norm(tree: object, dtype: DTypeLike) -> jax.Array:
    """Return the sum of squares of all entries of a pytree of f[...], as a scalar of ``dtype``."""
    squares = [jnp.sum(jnp.square(jnp.asarray(leaf, dtype))) for leaf in jax.tree.leaves(tree)]
    return sum(squares, jnp.zeros((), dtype))


def power(base: jax.Array, exponent: float) -> jax.Array:
    """Return ``base ** exponent`` for a negative exponent, 0 where the base is 0, NaN where inf.

    A sum of squared gradients that is 0 has seen zero gradients only, which move nothing. One that
    has overflowed would move nothing either, and hide that the run has diverged.
    """
    is_finite = base < jnp.inf
    is_positive = is_finite & (base > 0)
    raised = jnp.where(is_positive, jnp.where(is_positive, base, 1) ** exponent, 0)
    return jnp.where(is_finite, raised, jnp.nan)


def check_like(tree: object, reference: object, what: str, reference_name: str) -> None:
    """Raise ``ConfigError`` unless a pytree is real, and has another's structure and shapes."""
    structure: object = jax.tree.structure(tree)
    expected: object = jax.tree.structure(reference)
    if structure != expected:
        raise ConfigError(
            f"{what} must be a tree like {reference_name}, {expected}; it is {structure}"
        )
    pairs = zip(jax.tree.leaves_with_path(tree), jax.tree.leaves(reference), strict=True)
    for (path, leaf), like in pairs:
        if jnp.shape(leaf) != jnp.shape(like):
            raise ConfigError(
                f"{what} must have the shapes of {reference_name}; leaf "
                f"{jax.tree_util.keystr(path) or 'at the root'} has {jnp.shape(leaf)}, "
                f"not {jnp.shape(like)}"
            )
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise ConfigError(
                f"{what} must be real; leaf {jax.tree_util.keystr(path) or 'at the root'} is "
                f"{jnp.result_type(leaf)}"
            )


def _as_parameter(path: tuple[object, ...], leaf: jax.typing.ArrayLike) -> jax.Array:
    """Return an array of a leaf's own floating dtype, not weakly typed."""
    dtype = jnp.result_type(leaf)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ConfigError(
            f"parameters must be floating point; leaf {jax.tree_util.keystr(path)} of (x, y) is "
            f"{dtype}: convert it, or keep it in the data"
        )
    return jnp.asarray(leaf, dtype)


def _move(tree: Tree, stepsize: jax.Array, grads: Tree) -> Tree:
    """Return ``tree + stepsize * grads`` in the dtype of the stepsize."""
    moved: Tree = jax.tree.map(lambda leaf, grad: leaf + stepsize * grad, tree, grads)
    return moved


def _cast_like(tree: Tree, reference: Tree) -> Tree:
    """Return a tree with its leaves in the dtypes of another."""
    cast: Tree = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), tree, reference)
    return cast
