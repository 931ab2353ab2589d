"""D-SGDA: descent ascent with constant stepsizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from experiments.minimax.rivals.trees import cast_like, check_gradients, move
from kvflow_jax.minimax import DAdaST


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Point:
    """One node's state between two steps.

    Attributes:
        x: pytree of f[...], the parameters that minimise.
        y: pytree of f[...], the parameters that maximise.
        step: i32[], number of steps taken.
    """

    x: Any
    y: Any
    step: jax.Array


@dataclass(frozen=True)
class DSGDA:
    """Decentralised stochastic gradient descent ascent.

    One step at node i::

        x_i  <- sum_j W_ij (x_j - gamma_x g^x_j)
        y_i  <- P_Y(sum_j W_ij (y_j + gamma_y g^y_j))

    It converges only where the stepsizes, and the ratio of the two, suit the problem's constants.

    Attributes:
        gamma_x: stepsize of x, positive.
        gamma_y: stepsize of y, positive.

    Raises:
        ConfigError: A field is out of its range.
    """

    gamma_x: float = 0.1
    gamma_y: float = 0.1

    def __post_init__(self) -> None:
        DAdaST(self.gamma_x, self.gamma_y)  # which checks the stepsizes

    def init(self, x: Any, y: Any) -> Point:
        """Return the state of one node before its first step."""
        begin = DAdaST().init(x, y)
        return Point(begin.x, begin.y, jnp.asarray(0, jnp.int32))

    def step(
        self,
        state: Point,
        grads_x: Any,
        grads_y: Any,
        mix: Callable[[Any], Any],
        project: Callable[[Any], Any] | None = None,
    ) -> Point:
        """Return the state of one node after a step (see ``Rule.step``)."""
        check_gradients(state, grads_x, grads_y)
        x, y = mix((move(state.x, -self.gamma_x, grads_x), move(state.y, self.gamma_y, grads_y)))
        x, y = cast_like(x, state.x), cast_like(y, state.y)
        return Point(x, y if project is None else project(y), state.step + 1)
