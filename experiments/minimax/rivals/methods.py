"""All methods by name, so that a table can run each on the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from experiments.minimax.rivals.adagrad import DAdaGrad
from experiments.minimax.rivals.coordinates import DAdaSTCoordinates
from experiments.minimax.rivals.hsgd import DMHSGD, at_both_points
from experiments.minimax.rivals.neada import DNeAda
from experiments.minimax.rivals.sgda import DSGDA
from experiments.minimax.rivals.tiada import DTiAda
from experiments.minimax.rivals.tracking import GTDA
from kvflow_jax.minimax import DAdaST
from kvflow_jax.minimax.nodes import Gradients
from kvflow_jax.minimax.rule import NodeState, Rule


@dataclass(frozen=True)
class Method:
    """A method as a table runs it.

    Attributes:
        name: for the table.
        make: its rule, from gamma_x and gamma_y, and ``start`` where it has accumulators.
        is_adaptive: True if it has accumulators, which begin at ``start``.
        calls_per_step: calls for gradients in one step; more than one needs ``adapt``.
    """

    name: str
    make: Callable[..., Rule[Any]]
    is_adaptive: bool = True
    calls_per_step: int = 1

    def rule(self, gamma_x: float, gamma_y: float, *, start: float = 1.0) -> Rule[Any]:
        """Return the rule with these stepsizes, its other settings at their defaults."""
        if self.is_adaptive:
            return self.make(gamma_x, gamma_y, start=start)
        return self.make(gamma_x, gamma_y)

    def adapt(self, gradients: Gradients[Any, Any, Any]) -> Gradients[Any, Any, Any]:
        """Return the gradients that its runs take, from those of one node's function."""
        return gradients if self.calls_per_step == 1 else at_both_points(gradients)

    def point(self, state: NodeState) -> tuple[Any, Any]:
        """Return a node's x and y, of one node's state or of all nodes'."""
        return (state.x, state.y) if self.calls_per_step == 1 else (state.x.now, state.y.now)


METHODS = MappingProxyType(
    {
        method.name: method
        for method in (
            Method("D-SGDA", DSGDA, is_adaptive=False),
            Method("GT-DA", GTDA, is_adaptive=False),
            Method("DM-HSGD", DMHSGD, is_adaptive=False, calls_per_step=2),
            Method("D-AdaGrad", DAdaGrad),
            Method("D-NeAda", DNeAda),
            Method("D-TiAda", DTiAda),
            Method("D-AdaST", DAdaST),
            Method("D-AdaST, coordinate-wise", DAdaSTCoordinates),
        )
    }
)


def centralised(gradients: Gradients[Any, Any, Any]) -> Gradients[Any, Any, Any]:
    """Return the mean of all nodes' gradients at one point, for a graph of one node.

    Its data are those of all nodes: leaves of [n, ...], [1, n, ...] with the graph's own axis.
    """

    def of_all(data: Any, x: Any, y: Any, key: jax.Array) -> tuple[Any, Any]:
        (num_nodes,) = {len(leaf) for leaf in jax.tree.leaves(data)}
        keys = jax.random.split(key, num_nodes)
        grads = jax.vmap(gradients, in_axes=(0, None, None, 0))(data, x, y, keys)
        mean: tuple[Any, Any] = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), grads)
        return mean

    return of_all
