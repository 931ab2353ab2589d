"""DM-HSGD: descent ascent along tracked estimates with reduced variance (STORM's)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.minimax.rivals.tracking import track
from experiments.minimax.rivals.trees import (
    cast_like,
    check_gradients,
    copy,
    move,
    wide_zeros,
    widen,
)
from kvflow_jax.errors import ConfigError
from kvflow_jax.minimax import DAdaST
from kvflow_jax.minimax.nodes import Gradients


class Pair(NamedTuple):
    """Something at the present point and at the one before: parameters, or gradients there."""

    now: Any
    before: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MomentumState:
    """One node's state between two steps.

    Attributes:
        x: pair of pytrees of f[...], the parameters that minimise, now and a step ago.
        y: pair likewise, the parameters that maximise.
        trackers: pair (of x, of y) of pytrees, float32 or wider: trackers after the last exchange.
        estimates: pair likewise, the estimates of the gradients that the trackers contain.
        step: i32[], number of steps taken.
    """

    x: Pair
    y: Pair
    trackers: Any
    estimates: Any
    step: jax.Array


@dataclass(frozen=True)
class DMHSGD:
    """DM-HSGD (Xian, Huang, Zhang and Huang, NeurIPS 2021).

    One step at node i, with trackers s_i that begin at 0. Gradients at the present point and, of
    the same sample, at the one before give the estimate v_i, a pair for x and y::

        v_i'  = g_i(now) + (1 - weight) (v_i - g_i(before))          g_i(now) in the first step
        s_i  <- s_i + v_i' - v_i
        (x, y, s)_i <- sum_j W_ij (x - gamma_x s^x, y + gamma_y s^y, s)_j      one message
        y_i  <- P_Y(y_i)

    The authors' own program exchanges the trackers before it moves, so in two messages a step, and
    begins with the gradient of a large batch. A step takes two calls for gradients: run it on
    ``at_both_points(gradients)``.

    Attributes:
        gamma_x: stepsize of x, positive.
        gamma_y: stepsize of y, positive.
        weight_x: weight of the newest gradient in x, in (0, 1]; the default is of their program.
        weight_y: likewise in y.

    Raises:
        ConfigError: A field is out of its range.
    """

    gamma_x: float = 0.01
    gamma_y: float = 0.1
    weight_x: float = 0.01
    weight_y: float = 0.1

    def __post_init__(self) -> None:
        DAdaST(self.gamma_x, self.gamma_y)  # which checks the stepsizes
        for name in ("weight_x", "weight_y"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in (0, 1], not {getattr(self, name)}")

    def init(self, x: Any, y: Any) -> MomentumState:
        """Return the state of one node before its first step."""
        begin = DAdaST().init(x, y)
        trackers, estimates = (wide_zeros((begin.x, begin.y)) for _ in range(2))
        x, y = Pair(begin.x, copy(begin.x)), Pair(begin.y, copy(begin.y))
        return MomentumState(x, y, trackers, estimates, jnp.asarray(0, jnp.int32))

    def step(
        self,
        state: MomentumState,
        grads_x: Pair,
        grads_y: Pair,
        mix: Callable[[Any], Any],
        project: Callable[[Any], Any] | None = None,
    ) -> MomentumState:
        """Return the state of one node after a step (see ``Rule.step``).

        Args:
            grads_x, grads_y: pairs of gradients, as ``at_both_points`` returns them.
        """
        check_gradients(state, grads_x, grads_y)
        is_first = state.step == 0
        last_x, last_y = state.estimates

        def estimate(grads: Pair, last: Any, weight: float) -> Any:
            # No estimate precedes the first.
            keep = jnp.where(is_first, 0, 1 - weight)
            return jax.tree.map(
                lambda now, before, old: now + keep.astype(old.dtype) * (old - before),
                *widen(grads),
                last,
            )

        estimates = (
            estimate(grads_x, last_x, self.weight_x),
            estimate(grads_y, last_y, self.weight_y),
        )
        track_x, track_y = track(state.trackers, estimates, state.estimates)
        x = move(state.x.now, -self.gamma_x, track_x)
        y = move(state.y.now, self.gamma_y, track_y)
        x, y, trackers = mix((x, y, (track_x, track_y)))
        x, y = cast_like(x, state.x.now), cast_like(y, state.y.now)
        y = y if project is None else project(y)
        return MomentumState(
            Pair(x, state.x.now), Pair(y, state.y.now), trackers, estimates, state.step + 1
        )


def at_both_points(gradients: Gradients[Any, Any, Any]) -> Gradients[Any, Pair, Pair]:
    """Return gradients at pairs of points, of the same sample at both."""

    def of_pairs(data: Any, x: Pair, y: Pair, key: jax.Array) -> tuple[Pair, Pair]:
        now_x, now_y = gradients(data, x.now, y.now, key)
        before_x, before_y = gradients(data, x.before, y.before, key)
        return Pair(now_x, before_x), Pair(now_y, before_y)

    return of_pairs
