"""D-AdaGrad: each player has AdaGrad's stepsize, each node its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from experiments.minimax.rivals.trees import cast_like, check_gradients, move
from kvflow_jax.minimax import DAdaST, State
from kvflow_jax.minimax.dadast import power, squared_norm


@dataclass(frozen=True)
class DAdaGrad:
    """Descent ascent with AdaGrad-Norm's stepsizes (Ward et al. 2019) of a node's own gradients.

    One step at node i, with scalars m^x_i and m^y_i that begin at ``start``::

        m^x_i <- m^x_i + |g^x_i|^2                  m^y_i <- m^y_i + |g^y_i|^2
        x_i   <- sum_j W_ij (x_j - gamma_x (m^x_j)^-1/2 g^x_j)
        y_i   <- P_Y(sum_j W_ij (y_j + gamma_y (m^y_j)^-1/2 g^y_j))

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

    def init(self, x: Any, y: Any) -> State[Any, Any]:
        """Return the state of one node before its first step."""
        return DAdaST(start=self.start).init(x, y)

    def step(
        self,
        state: State[Any, Any],
        grads_x: Any,
        grads_y: Any,
        mix: Callable[[Any], Any],
        project: Callable[[Any], Any] | None = None,
    ) -> State[Any, Any]:
        """Return the state of one node after a step (see ``Rule.step``)."""
        check_gradients(state, grads_x, grads_y)
        dtype = state.accum_x.dtype
        sum_x = state.accum_x + squared_norm(grads_x, dtype)
        sum_y = state.accum_y + squared_norm(grads_y, dtype)
        x = move(state.x, -self.gamma_x * power(sum_x, -0.5), grads_x)
        y = move(state.y, self.gamma_y * power(sum_y, -0.5), grads_y)
        x, y = mix((x, y))
        x, y = cast_like(x, state.x), cast_like(y, state.y)
        return State(x, y if project is None else project(y), sum_x, sum_y, state.step + 1)
