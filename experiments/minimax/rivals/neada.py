"""D-NeAda: AdaGrad's stepsizes with rounds of ascent between two steps of descent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from experiments.minimax.rivals.trees import cast_like, check_gradients, choose, move
from kvflow_jax.minimax import DAdaST
from kvflow_jax.minimax.dadast import power, squared_norm


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NestedState:
    """One node's state between two steps.

    Attributes:
        x: pytree of f[...], the parameters that minimise.
        y: pytree of f[...], the parameters that maximise.
        accum_x: f32[], m^x: the summed ``|g^x|^2`` of this node's steps of descent.
        accum_y: f32[], m^y: the summed ``|g^y|^2`` of its steps of ascent.
        round: i32[], t: number of steps of descent taken.
        ascents: i32[], number of steps of ascent since the last descent.
        step: i32[], number of steps taken.
    """

    x: Any
    y: Any
    accum_x: jax.Array
    accum_y: jax.Array
    round: jax.Array
    ascents: jax.Array
    step: jax.Array


@dataclass(frozen=True)
class DNeAda:
    """NeAda-AdaGrad (Yang, Li and He, NeurIPS 2022) of a node's own gradients.

    Round t = 0, 1, 2, ... has t + 1 steps of ascent, each with a gradient of its own::

        m^y_i <- m^y_i + |g^y_i|^2
        y_i   <- P_Y(sum_j W_ij (y_j + gamma_y (m^y_j)^-1/2 g^y_j))

    and then one of descent::

        m^x_i <- m^x_i + |g^x_i|^2
        x_i   <- sum_j W_ij (x_j - gamma_x (m^x_j)^-1/2 g^x_j)

    A step of either kind takes one call for gradients, so K calls are K steps of any method here.
    That a round ends after t + 1 steps is NeAda's rule for noisy gradients, from memory of the
    paper. Its other rule, ``|g^y|^2 <= 1/(t + 1)``, would need nodes to agree on when it holds. The
    accumulator of y is kept from round to round.

    Attributes:
        gamma_x: stepsize of x, positive.
        gamma_y: stepsize of y, positive.
        start: first value of both accumulators, not negative.

    Raises:
        ConfigError: A field is out of its range.
    """

    gamma_x: float = 1.0
    gamma_y: float = 1.0
    start: float = 1.0

    def __post_init__(self) -> None:
        DAdaST(self.gamma_x, self.gamma_y, start=self.start)  # which checks the fields

    def init(self, x: Any, y: Any) -> NestedState:
        """Return the state of one node before its first step."""
        begin = DAdaST(start=self.start).init(x, y)
        counts = (jnp.full((), 0, jnp.int32) for _ in range(3))
        return NestedState(begin.x, begin.y, begin.accum_x, begin.accum_y, *counts)

    def step(
        self,
        state: NestedState,
        grads_x: Any,
        grads_y: Any,
        mix: Callable[[Any], Any],
        project: Callable[[Any], Any] | None = None,
    ) -> NestedState:
        """Return the state of one node after a step (see ``Rule.step``)."""
        check_gradients(state, grads_x, grads_y)
        # Every node counts alike, so all of them descend in the same step.
        descends = state.ascents > state.round
        dtype = state.accum_x.dtype
        sum_x = state.accum_x + jnp.where(descends, squared_norm(grads_x, dtype), 0)
        sum_y = state.accum_y + jnp.where(descends, 0, squared_norm(grads_y, dtype))
        lower = move(state.x, -self.gamma_x * power(sum_x, -0.5), grads_x)
        higher = move(state.y, self.gamma_y * power(sum_y, -0.5), grads_y)
        x, y = mix((choose(descends, lower, state.x), choose(descends, state.y, higher)))
        x, y = cast_like(x, state.x), cast_like(y, state.y)
        return NestedState(
            x,
            y if project is None else project(y),
            sum_x,
            sum_y,
            state.round + descends,
            jnp.where(descends, 0, state.ascents + 1),
            state.step + 1,
        )
