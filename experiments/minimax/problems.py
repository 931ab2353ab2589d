"""The quadratics on which methods are compared, each with scalar players, or several side by side.

Node i has ``f_i(x, y) = b_i xy - a_i/2 x^2 - c_i x - e_i/2 y^2 + d_i y``. With the means over the
nodes a, b, ... the gradient of f in x is ``by - ax - c``.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Quadratic:
    """The functions of all nodes.

    Attributes:
        a, b, c, d, e: f64[n, ...], a coefficient of each node; the axes behind the first are those
            of x and y.
    """

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    d: np.ndarray
    e: np.ndarray

    @property
    def num_nodes(self) -> int:
        """Number of nodes, n."""
        return len(self.a)

    @property
    def data(self) -> Arrays:
        """What the gradients are computed from, with the nodes as leading axis."""
        return self.a, self.b, self.c, self.d, self.e

    def with_noise(self, sigma: float) -> tuple[Arrays, np.ndarray]:
        """Return what ``noisy_gradients`` are computed from: noise N(0, sigma^2) in each entry."""
        return self.data, np.full(self.a.shape, sigma)

    def squared_gradient(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return ``|grad_x f|^2`` at the mean of the nodes, for each entry of x.

        Args:
            x: f64[n, k, ...], after each of k steps.
            y: f64[n, k, ...].

        Returns:
            f64[k, ...], the square of each entry's derivative.
        """
        a, b, c = (array.mean(0) for array in (self.a, self.b, self.c))
        squared: np.ndarray = (b * y.mean(0) - a * x.mean(0) - c) ** 2
        return squared


def gradients(
    data: tuple[jax.Array, ...], x: jax.Array, y: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients in x and y of one node's function."""
    a, b, c, d, e = data
    return b * y - a * x - c, b * x - e * y + d


def noisy_gradients(
    data: tuple[tuple[jax.Array, ...], jax.Array], x: jax.Array, y: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients with normal noise, whose deviation is the second part of the data."""
    exact, sigma = data
    grads_x, grads_y = gradients(exact, x, y, key)
    noise_x, noise_y = sigma * jax.random.normal(key, (2, *x.shape), x.dtype)
    return grads_x + noise_x, grads_y + noise_y


def two_nodes() -> Quadratic:
    """Return the paper's quadratic (6), from memory of it.

    ``f_i = -9/20 y^2 + 3/5 y - x + L_i xy - L_i^2/2 x^2`` with L = 1, 2. Every point of
    ``y = 5/3 x + 2/3`` is stationary for the mean, the line that the caption of figure 1 speaks of.
    """
    slope = np.array([1.0, 2.0])
    ones = np.ones(2)
    return Quadratic(a=slope**2, b=slope, c=ones, d=0.6 * ones, e=0.9 * ones)


def frozen(alpha: float, beta: float, s: float = 0.99) -> Quadratic:
    """Return three nodes at which D-TiAda never leaves the line y = sx, whatever its stepsizes.

    Own construction with the property that the paper's theorem 1 states. On a complete graph, with
    accumulators that begin at 0::

        f_1 = -y^2/2 + xy - x^2/2         f_2 = f_3 = -y^2/2 - bxy - c/2 x^2
        a = 2^(-1/(1 - 2 beta))           A = 2^(1/(2 alpha - 1))
        b = a(1 - s) - s                  c = -bs - A(1 - s)

    Then the gradients of node 1 in x and y are A^-1 and a^-1 times those of the others, with the
    other sign, and each step's three moves cancel: ``2 A^(1 - 2 alpha) = 2 a^(1 - 2 beta) = 1``.

    Args:
        alpha, beta: exponents of the method.
        s: slope of the line.
    """
    a = 2 ** (-1 / (1 - 2 * beta))
    b = a * (1 - s) - s
    c = -b * s - 2 ** (1 / (2 * alpha - 1)) * (1 - s)
    zeros = np.zeros(3)
    return Quadratic(a=np.array([1, c, c]), b=np.array([1, -b, -b]), c=zeros, d=zeros, e=np.ones(3))


def heterogeneous(num_nodes: int, spread: float, seed: int = 0) -> Quadratic:
    """Return nodes that differ by ``spread``, and whose mean has its only saddle at 0.

    ``f_i = -y^2/2 + 2xy - a_i/2 x^2 - c_i x + d_i y``. The mean of a is 1, the means of c and d are
    0; their deviations over the nodes are of ``spread`` (d: 0.3 times that). Own family.
    """
    rng = np.random.default_rng(seed)

    def deviations(scale: float) -> np.ndarray:
        drawn = rng.normal(size=num_nodes)
        centred: np.ndarray = scale * (drawn - drawn.mean())
        return centred

    ones = np.ones(num_nodes)
    return Quadratic(
        a=1 - deviations(spread),
        b=2 * ones,
        c=deviations(spread),
        d=deviations(0.3 * spread),
        e=ones,
    )


def side_by_side(*problems: Quadratic) -> Quadratic:
    """Return problems with as many nodes each as one, whose players have an entry for each."""
    pairs = zip(*(problem.data for problem in problems), strict=True)
    return Quadratic(*(np.stack(arrays, axis=1) for arrays in pairs))


def scaled(problem: Quadratic, factors: np.ndarray) -> Quadratic:
    """Return a problem with scalar players once for each factor, its functions times the factor.

    Args:
        problem: arrays of f64[n].
        factors: f64[d], positive.

    Returns:
        Players in R^d; f is the sum over the entries.
    """
    return Quadratic(*(array[:, None] * factors for array in problem.data))
