"""Several independent runs of one rule in one program, as a leading axis of each node's players."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from kvflow_jax.minimax.rule import Rule

Tree = TypeVar("Tree")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Runs:
    """One node's states of all runs.

    Attributes:
        states: the rule's state, with a leading axis of runs.
    """

    states: Any

    @property
    def x(self) -> Any:
        """Pytree of f[runs, ...], the parameters that minimise."""
        return self.states.x

    @property
    def y(self) -> Any:
        """Pytree of f[runs, ...], the parameters that maximise."""
        return self.states.y

    @property
    def step(self) -> jax.Array:
        """i32[], number of steps taken, the same in all runs."""
        step: jax.Array = self.states.step[0]
        return step


@dataclass(frozen=True)
class SideBySide:
    """A rule for players with a leading axis of runs, which do not see each other.

    Its gradients are of all runs at once: those of the quadratics, which work entry by entry, are,
    and draw noise of their own for each.

    Attributes:
        rule: of each run.
    """

    rule: Rule[Any]

    def init(self, x: Any, y: Any) -> Runs:
        """Return one node's state before the first step of all runs."""
        return Runs(jax.vmap(self.rule.init)(x, y))

    def step(
        self,
        state: Runs,
        grads_x: Any,
        grads_y: Any,
        mix: Callable[[Any], Any],
        project: Callable[[Any], Any] | None = None,
    ) -> Runs:
        """Return one node's state after a step of all runs (see ``Rule.step``)."""

        def step(state: Any, grads_x: Any, grads_y: Any) -> Any:
            return self.rule.step(state, grads_x, grads_y, mix, project)

        return Runs(jax.vmap(step)(state.states, grads_x, grads_y))


def repeat(data: Tree, num_runs: int) -> Tree:
    """Return data of [n, ...] as [n, runs, ...], alike for all runs."""
    repeated: Tree = jax.tree.map(
        lambda leaf: jnp.repeat(jnp.expand_dims(leaf, 1), num_runs, axis=1), data
    )
    return repeated
