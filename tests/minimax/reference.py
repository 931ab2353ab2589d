"""D-AdaST written out in NumPy, nodes as rows, and problems with a known end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kvflow_jax.minimax.dadast import DAdaST

Gradients = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Bilinear:
    """f_i(x, y) = -e y^2/2 + d_i y - c x + b_i x y - a_i/2 x^2 with scalars x, y, as arrays [n]."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    d: np.ndarray
    e: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        return self.a, self.b, self.c, self.d, self.e

    def squared_gradient_at_mean(self, x: np.ndarray, y: np.ndarray) -> float:
        """|grad_x f|^2 at the mean of the nodes; x, y: [n]."""
        a, b, c, *_ = (array.mean() for array in self.arrays)
        return float((b * y.mean() - a * x.mean() - c) ** 2)


def gradients(arrays, x, y, key=None):
    """Gradients of ``Bilinear`` in x and y; elementwise, so of one node or of all."""
    a, b, c, d, e = arrays
    return b * y - a * x - c, -e * y + d + b * x


def two_nodes() -> Bilinear:
    """The paper's quadratic (6): every point of y = 5/3 x + 2/3 is stationary for the mean."""
    slope = np.array([1.0, 2.0])
    ones = np.ones(2)
    return Bilinear(slope**2, slope, ones, 0.6 * ones, 0.9 * ones)


def frozen(alpha: float, beta: float, s: float) -> Bilinear:
    """Three nodes at which D-TiAda does not move from the line y = s x, whatever its stepsizes."""
    a = 2 ** (-1 / (1 - 2 * beta))
    b = a * (1 - s) - s
    c = -b * s - 2 ** (1 / (2 * alpha - 1)) * (1 - s)
    ones, zeros = np.ones(3), np.zeros(3)
    return Bilinear(np.array([1, c, c]), np.array([1, -b, -b]), zeros, zeros, ones)


def run(rule: DAdaST, weights, gradients: Gradients, x, y, steps: int, *, is_tracked=True):
    """Return x, y and both accumulators of every node after each step (arXiv 2406.02939).

    Args:
        rule: stepsizes, exponents and start.
        weights: f64[n, n].
        gradients: of all nodes: f64[n, p], f64[n, q] -> f64[n, p], f64[n, q].
        x: f64[n, p], the start.
        y: f64[n, q], the start.
        steps: number of steps.
        is_tracked: False: each node keeps its own accumulators (D-TiAda).

    Returns:
        f64[steps, n, p], f64[steps, n, q], f64[steps, n], f64[steps, n].
    """
    accum_x = accum_y = np.full(len(x), rule.start)
    history = []
    for _ in range(steps):
        grad_x, grad_y = gradients(x, y)
        sum_x = accum_x + (grad_x**2).sum(1)
        sum_y = accum_y + (grad_y**2).sum(1)
        rate_x = rule.gamma_x * np.maximum(sum_x, sum_y) ** -rule.alpha
        rate_y = rule.gamma_y * sum_y**-rule.beta
        x = weights @ (x - rate_x[:, None] * grad_x)
        y = weights @ (y + rate_y[:, None] * grad_y)
        accum_x, accum_y = (weights @ sum_x, weights @ sum_y) if is_tracked else (sum_x, sum_y)
        history.append((x, y, accum_x, accum_y))
    return tuple(np.stack(one) for one in zip(*history, strict=True))
