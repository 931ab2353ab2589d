"""Graphs of nodes that average with their neighbours: who sends to whom, with which weight.

A graph of n nodes is its mixing matrix W, f64[n, n]: after one exchange node i has
``sum_j W[i, j] message_j``. W is doubly stochastic, so that the mean over the nodes is preserved,
and contracts: ``rho = |W - 11^T/n|_2^2 < 1`` (assumption 5 of D-AdaST, arXiv 2406.02939).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from kvflow_jax.errors import ConfigError

# Row and column sums of a matrix of float64 may differ from 1 by this. An error of 1e-7, that of a
# matrix rounded to float32, would scale the mean over the nodes by 1% in 10^5 exchanges.
SUM_TOLERANCE = 1e-9
# rho of a matrix that does not contract differs from 1 by rounding only.
RHO_TOLERANCE = 1e-12


@dataclass(frozen=True, eq=False)
class Graph:
    """A mixing matrix that preserves the mean over the nodes and contracts their disagreement.

    Attributes:
        name: for tables and errors.
        weights: f64[n, n], not negative; each row and column sums to 1 within 1e-9. Row i has the
            weights with which node i takes each node's message. Kept as a copy, read-only.

    Raises:
        ConfigError: The matrix is not square, not finite, not doubly stochastic, its graph is not
            connected, or it does not contract. The message names the first row, column or node.
    """

    name: str
    weights: np.ndarray

    def __post_init__(self) -> None:
        weights = np.array(self.weights, np.float64)
        _check_doubly_stochastic(weights)
        _check_connected(weights)
        weights.flags.writeable = False
        object.__setattr__(self, "weights", weights)
        if self.rho > 1 - RHO_TOLERANCE:
            raise ConfigError(
                "mixing with this matrix W does not contract: |W - J|_2 = 1, as nodes exchange "
                "their values without keeping a share; use (W + I) / 2"
            )

    @property
    def num_nodes(self) -> int:
        """Number of nodes, n."""
        return len(self.weights)

    @cached_property
    def rho(self) -> float:
        """``|W - 11^T/n|_2^2``: the factor by which an exchange contracts squared disagreement."""
        return float(np.linalg.norm(self.weights - 1 / self.num_nodes, ord=2) ** 2)

    @cached_property
    def offset_weights(self) -> dict[int, float] | None:
        """Weight of the sender ``i - offset`` at each receiver i, by offset; None: no circulant.

        Offsets are taken modulo n. Only positive weights are listed; offset 0 is the node itself.
        """
        first = self.weights[:, 0]
        index = np.arange(self.num_nodes)
        if not np.array_equal(self.weights, first[(index[:, None] - index) % self.num_nodes]):
            return None
        return {int(offset): float(first[offset]) for offset in np.flatnonzero(first)}

    def mix(self, message: jax.Array, axis: str) -> jax.Array:
        """Average a node's message with its neighbours'.

        A circulant takes one ``ppermute`` a neighbour, any other graph one ``all_gather``.

        Args:
            message: f[...] of this node, of the same shape at every node.
            axis: the named axis of ``vmap`` or ``shard_map`` that has one index a node.

        Returns:
            f[...], ``sum_j W[i, j] message_j`` at node i.
        """
        if self.offset_weights is None:
            return self.mix_by_product(message, axis)
        return self.mix_by_permutes(message, axis)

    def mix_by_permutes(self, message: jax.Array, axis: str) -> jax.Array:
        """Do what ``mix`` does with one ``ppermute`` a neighbour.

        Raises:
            ConfigError: The graph is not a circulant.
        """
        if self.offset_weights is None:
            raise ConfigError(
                f"graph {self.name!r} is not a circulant, its nodes have different neighbours: "
                "mix it by product"
            )
        # Differences, not weighted values: weights such as 1/3 do not sum to 1 once rounded, and a
        # sum of weighted values would scale what the nodes agree on at each exchange.
        mixed = message
        nodes = range(self.num_nodes)
        for offset, weight in self.offset_weights.items():
            if offset:
                pairs = [(node, (node + offset) % self.num_nodes) for node in nodes]
                received: jax.Array = jax.lax.ppermute(message, axis, pairs)
                mixed = mixed + weight * (received - message)
        return mixed

    def mix_by_product(self, message: jax.Array, axis: str) -> jax.Array:
        """Do what ``mix`` does with an ``all_gather`` and this node's row of the matrix.

        Under ``vmap`` that is one matrix product. Each node holds the messages of all for a moment.
        """
        messages: jax.Array = jax.lax.all_gather(message, axis)  # f[n, ...]
        row = jnp.asarray(self.weights, message.dtype)[jax.lax.axis_index(axis)]  # f[n]
        # Relative to one of them, for the reason given in mix_by_permutes.
        pivot = messages[0]
        # Accelerators round the factors of a product to 8 or 11 bits unless told otherwise.
        return pivot + jnp.tensordot(
            row, messages - pivot, axes=1, precision=jax.lax.Precision.HIGHEST
        )


def ring(num_nodes: int) -> Graph:
    """Return a ring: each node averages equally with the two beside it."""
    return _circulant("ring", num_nodes, (1, -1))


def directed_ring(num_nodes: int) -> Graph:
    """Return a directed ring: each node averages equally with the one before it."""
    return _circulant("directed ring", num_nodes, (1,))


def exponential(num_nodes: int) -> Graph:
    """Return a directed exponential graph: nodes average with those 1, 2, 4, ... before them."""
    return _circulant("exponential", num_nodes, (1 << k for k in range(num_nodes.bit_length())))


def dense(num_nodes: int) -> Graph:
    """Return a dense graph: each node averages with the nearest quarter of the nodes on each side.

    The paper names a dense graph and does not define it; this is ours.
    """
    reach = max(1, num_nodes // 4)
    return _circulant("dense", num_nodes, (k for k in range(-reach, reach + 1) if k))


def full(num_nodes: int) -> Graph:
    """Return the complete graph with equal weights: after one exchange all nodes agree."""
    return _circulant("full", num_nodes, range(1, num_nodes))


def from_matrix(weights: ArrayLike, name: str = "matrix") -> Graph:
    """Return the graph of a mixing matrix f[n, n], with the demands and errors of ``Graph``.

    Raises:
        ConfigError: Also if it is no matrix of numbers.
    """
    try:
        matrix = np.array(weights, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a mixing matrix is n by n numbers: {error}") from error
    return Graph(name, matrix)


def _circulant(name: str, num_nodes: int, offsets: Iterable[int]) -> Graph:
    """Return the graph with equal weights on a node itself and on those ``offsets`` before it."""
    if num_nodes < 1:
        raise ConfigError(f"a graph has at least 1 node, not {num_nodes}")
    senders = {0} | {offset % num_nodes for offset in offsets}
    matrix = np.zeros((num_nodes, num_nodes))
    nodes = np.arange(num_nodes)
    for offset in senders:
        matrix[nodes, (nodes - offset) % num_nodes] = 1 / len(senders)
    return Graph(name, matrix)


def _check_doubly_stochastic(matrix: np.ndarray) -> None:
    """Raise ``ConfigError`` unless a matrix is square, not negative, and sums to 1 both ways."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ConfigError(f"a mixing matrix is square, n by n; this one has shape {matrix.shape}")
    for bad, what in ((~np.isfinite(matrix), "is not finite"), (matrix < 0, "is negative")):
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise ConfigError(
                f"weight [{row}, {column}] of the mixing matrix {what}: {matrix[row, column]}"
            )
    for axis, what in ((1, "row"), (0, "column")):
        sums = matrix.sum(axis)
        bad = abs(sums - 1) > SUM_TOLERANCE
        if bad.any():
            index = int(np.argmax(bad))
            raise ConfigError(
                f"{what} {index} of the mixing matrix sums to {sums[index]:.12g}, not to 1: it "
                "must be doubly stochastic, in float64, so that the mean of the nodes is preserved"
            )


def _check_connected(matrix: np.ndarray) -> None:
    """Raise ``ConfigError`` if there are nodes that no message from node 0 can reach.

    With a doubly stochastic matrix all that node 0 reaches also reaches node 0.
    """
    reached = np.zeros(len(matrix), bool)
    reached[0] = True
    for _ in range(len(matrix)):
        reached |= (matrix[:, reached] > 0).any(axis=1)
    if not reached.all():
        raise ConfigError(
            f"the graph is not connected: node {int(np.argmin(reached))} has no path from node 0; "
            "add an edge between the parts"
        )
