"""D-TiAda: D-AdaST without stepsize tracking. On a graph of one node it is TiAda."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kvflow_jax.minimax import DAdaST, State


@dataclass(frozen=True)
class DTiAda(DAdaST):
    """TiAda's stepsizes (Li, Yang and He, ICLR 2023) of a node's own gradients.

    One step at node i, with scalars m^x_i and m^y_i that begin at ``start``::

        m^x_i <- m^x_i + |g^x_i|^2                  m^y_i <- m^y_i + |g^y_i|^2
        x_i   <- sum_j W_ij (x_j - gamma_x max(m^x_j, m^y_j)^-alpha g^x_j)
        y_i   <- P_Y(sum_j W_ij (y_j + gamma_y (m^y_j)^-beta g^y_j))

    The scalars are not exchanged, so the nodes weigh their gradients unequally for ever.

    The fields are those of ``DAdaST``.

    Raises:
        ConfigError: A field is out of its range.
    """

    def step(
        self,
        state: State[Any, Any],
        grads_x: Any,
        grads_y: Any,
        mix: Callable[[Any], Any],
        project: Callable[[Any], Any] | None = None,
    ) -> State[Any, Any]:
        """Return the state of one node after a step (see ``Rule.step``)."""

        def mix_parameters(message: Any) -> Any:
            x, y, sum_x, sum_y = message
            return *mix((x, y)), sum_x, sum_y

        return super().step(state, grads_x, grads_y, mix_parameters, project)
