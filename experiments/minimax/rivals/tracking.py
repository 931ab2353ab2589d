"""GT-DA: descent ascent along gradients that the nodes track, with constant stepsizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from experiments.minimax.rivals.trees import cast_like, check_gradients, move, wide_zeros, widen
from kvflow_jax.minimax import DAdaST


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrackingState:
    """One node's state between two steps.

    Attributes:
        x: pytree of f[...], the parameters that minimise.
        y: pytree of f[...], the parameters that maximise.
        trackers: pair of pytrees like x and y, float32 or wider: the trackers after the last
            exchange.
        last: pair of pytrees likewise, the gradients that the trackers contain.
        step: i32[], number of steps taken.
    """

    x: Any
    y: Any
    trackers: Any
    last: Any
    step: jax.Array


@dataclass(frozen=True)
class GTDA:
    """Gradient tracking descent ascent.

    One step at node i, with trackers s_i and last gradients that begin at 0, each a pair of trees::

        s_i   <- s_i + g_i - (g_i of the step before)
        (x, y, s)_i <- sum_j W_ij (x - gamma_x s^x, y + gamma_y s^y, s)_j      one message
        y_i   <- P_Y(y_i)

    The mean of the trackers is the mean of the present gradients (Di Lorenzo and Scutari 2016).
    A message is twice as long as that of D-SGDA.

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

    def init(self, x: Any, y: Any) -> TrackingState:
        """Return the state of one node before its first step."""
        begin = DAdaST().init(x, y)
        trackers, last = (wide_zeros((begin.x, begin.y)) for _ in range(2))
        return TrackingState(begin.x, begin.y, trackers, last, jnp.asarray(0, jnp.int32))

    def step(
        self,
        state: TrackingState,
        grads_x: Any,
        grads_y: Any,
        mix: Callable[[Any], Any],
        project: Callable[[Any], Any] | None = None,
    ) -> TrackingState:
        """Return the state of one node after a step (see ``Rule.step``)."""
        check_gradients(state, grads_x, grads_y)
        grads = widen((grads_x, grads_y))
        track_x, track_y = track(state.trackers, grads, state.last)
        x = move(state.x, -self.gamma_x, track_x)
        y = move(state.y, self.gamma_y, track_y)
        x, y, trackers = mix((x, y, (track_x, track_y)))
        x, y = cast_like(x, state.x), cast_like(y, state.y)
        y = y if project is None else project(y)
        return TrackingState(x, y, trackers, grads, state.step + 1)


def track(trackers: Any, present: Any, last: Any) -> Any:
    """Return ``trackers + present - last``, pytrees alike."""
    return jax.tree.map(lambda tracker, new, old: tracker + new - old, trackers, present, last)
