"""The coordinate-wise variant of D-AdaST: a stepsize for each parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from experiments.minimax.rivals.trees import (
    cast_like,
    check_gradients,
    move,
    scaled,
    widen,
)
from kvflow_jax.minimax import DAdaST
from kvflow_jax.minimax.dadast import accumulator_dtype, power


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CoordinateState:
    """One node's state between two steps.

    Attributes:
        x: pytree of f[...], the parameters that minimise.
        y: pytree of f[...], the parameters that maximise.
        accum_x: pytree like x, float32 or wider, m^x: the tracked mean of the summed squares of
            each entry of g^x.
        accum_y: pytree like y, likewise of g^y.
        step: i32[], number of steps taken.
    """

    x: Any
    y: Any
    accum_x: Any
    accum_y: Any
    step: jax.Array


@dataclass(frozen=True)
class DAdaSTCoordinates:
    """D-AdaST with an accumulator for each parameter.

    One step at node i; squares, powers and products are entry by entry, and |h| is the sum of the
    entries of h::

        h^x_i = m^x_i + (g^x_i)^2                     h^y_i = m^y_i + (g^y_i)^2
        psi_i = (|h^x_i| / max(|h^x_i|, |h^y_i|))^alpha
        x_i  <- x_i - gamma_x psi_i (h^x_i)^-alpha g^x_i
        y_i  <- y_i + gamma_y (h^y_i)^-beta g^y_i
        (x, y, m^x, m^y)_i <- sum_j W_ij (x, y, h^x, h^y)_j          one message
        y_i  <- P_Y(y_i)

    The paper has such a variant in its appendix, whose text could not be had. That the ratio psi is
    of sums is what TiAda's own program does. For one parameter a player this is ``DAdaST``. The
    message is twice as long as that of D-SGDA.

    Attributes:
        gamma_x: stepsize of x, positive.
        gamma_y: stepsize of y, positive.
        alpha: exponent of x, in (beta, 1).
        beta: exponent of y, in (0, alpha).
        start: first value of all accumulators, not negative.

    Raises:
        ConfigError: A field is out of its range.
    """

    gamma_x: float = 1.0
    gamma_y: float = 1.0
    alpha: float = 0.6
    beta: float = 0.4
    start: float = 1.0

    def __post_init__(self) -> None:
        # Which checks the fields.
        DAdaST(self.gamma_x, self.gamma_y, self.alpha, self.beta, self.start)

    def init(self, x: Any, y: Any) -> CoordinateState:
        """Return the state of one node before its first step."""
        begin = DAdaST().init(x, y)
        accum_x, accum_y = jax.tree.map(
            lambda leaf: jnp.full_like(leaf, self.start), widen((begin.x, begin.y))
        )
        return CoordinateState(begin.x, begin.y, accum_x, accum_y, jnp.asarray(0, jnp.int32))

    def step(
        self,
        state: CoordinateState,
        grads_x: Any,
        grads_y: Any,
        mix: Callable[[Any], Any],
        project: Callable[[Any], Any] | None = None,
    ) -> CoordinateState:
        """Return the state of one node after a step (see ``Rule.step``)."""
        check_gradients(state, grads_x, grads_y)
        sum_x = _add_squares(state.accum_x, grads_x)
        sum_y = _add_squares(state.accum_y, grads_y)
        total_x, total_y = _total(sum_x), _total(sum_y)
        # Where total_x is 0, so is every gradient in x, and any ratio moves nothing.
        psi = total_x**self.alpha * power(jnp.maximum(total_x, total_y), -self.alpha)
        rates_x = jax.tree.map(lambda leaf: power(leaf, -self.alpha), sum_x)
        rates_y = jax.tree.map(lambda leaf: power(leaf, -self.beta), sum_y)
        x = move(state.x, -self.gamma_x * psi, scaled(rates_x, grads_x))
        y = move(state.y, self.gamma_y, scaled(rates_y, grads_y))
        x, y, accum_x, accum_y = mix((x, y, sum_x, sum_y))
        x, y = cast_like(x, state.x), cast_like(y, state.y)
        y = y if project is None else project(y)
        return CoordinateState(x, y, accum_x, accum_y, state.step + 1)


def _add_squares(accum: Any, grads: Any) -> Any:
    """Return ``accum + grads^2``, entry by entry in the dtype of the accumulators."""
    return jax.tree.map(lambda leaf, grad: leaf + jnp.asarray(grad, leaf.dtype) ** 2, accum, grads)


def _total(tree: Any) -> jax.Array:
    """Return the sum of all entries of a tree of accumulators, in the widest of their dtypes."""
    sums = (jnp.sum(leaf) for leaf in jax.tree.leaves(tree))
    return sum(sums, jnp.zeros((), accumulator_dtype(tree)))
