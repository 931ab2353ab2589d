"""What a method of distributed minimax is: how one node begins, and how it steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax

Tree = TypeVar("Tree")

# Averages a pytree of f[...] of this node with those of its neighbours: ``Graph.mix`` over an axis.
Mix = Callable[[Tree], Tree]


class NodeState(Protocol):
    """One node's state between two steps, a registered pytree."""

    @property
    def x(self) -> Any:
        """Pytree of f[...], the parameters that minimise."""

    @property
    def y(self) -> Any:
        """Pytree of f[...], the parameters that maximise."""

    @property
    def step(self) -> jax.Array:
        """i32[], number of steps taken."""


S = TypeVar("S", bound=NodeState)


class Rule(Protocol[S]):
    """A method, of which ``DAdaST`` is one. ``over_axis`` and ``over_mesh`` run any."""

    def init(self, x: Any, y: Any) -> S:
        """Return the state of one node before its first step.

        Args:
            x: pytree of f[...], where it begins to minimise.
            y: pytree of f[...], where it begins to maximise.
        """

    def step(
        self,
        state: S,
        grads_x: Any,
        grads_y: Any,
        mix: Callable[[Any], Any],
        project: Callable[[Any], Any] | None = None,
    ) -> S:
        """Return the state of one node after a step.

        Args:
            grads_x: gradient of the node's function in x at ``(state.x, state.y)``, a tree like x.
            grads_y: likewise in y.
            mix: averages a pytree with those of the neighbours; called once, in the same way at all
                nodes.
            project: the projection onto the set of y; None: no constraint.
        """
