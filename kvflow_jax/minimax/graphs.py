"""Graphs of nodes that average with their neighbours: who sends to whom, with which weight.

A graph of n nodes is its mixing matrix W, f64[n, n]: after one exchange node i has
``sum_j W[i, j] message_j``. W is doubly stochastic, so that the mean over the nodes is preserved,
and contracts: ``rho = |W - 11^T/n|_2^2 < 1`` (assumption 5 of D-AdaST, arXiv 2406.02939).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import ArrayLike

from kvflow_jax.errors import ConfigError

Tree = TypeVar("Tree")

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
    weights: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        weights = np.array(self.weights, np.float64)
        _check_doubly_stochastic(weights)
        _check_connected(weights)
        weights.flags.writeable = False
        object.__setattr__(self, "weights", weights)
        if self.rho > 1 - RHO_TOLERANCE:
            raise ConfigError(f"mixing with this matrix W does not contract: {_obstacle(weights)}")

    @property
    def num_nodes(self) -> int:
        """Number of nodes, n."""
        return len(self.weights)

    @cached_property
    def rho(self) -> float:
        """``|W - 11^T/n|_2^2``: the factor by which an exchange contracts squared disagreement."""
        return _rho(self.weights)

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

    def mix(self, message: Tree, axis: str) -> Tree:
        """Average a node's message with its neighbours', sent as one vector.

        A circulant takes one ``ppermute`` a neighbour, any other graph one ``all_gather``.

        Args:
            message: pytree of f[...] of this node, alike at every node.
            axis: the named axis of ``vmap`` or ``shard_map`` that has one index a node.

        Returns:
            Pytree of f[...], ``sum_j W[i, j] message_j`` at node i.

        Raises:
            ConfigError: The axis has other than n indices.
        """
        vector, unravel = ravel_pytree(message)
        mixed: Tree = unravel(self.mix_block(vector[None], axis)[0])
        return mixed

    def mix_by_product(self, message: Tree, axis: str) -> Tree:
        """Do what ``mix`` does with an ``all_gather`` and this node's row of the matrix.

        Under ``vmap`` that is one matrix product a leaf. Each node holds the messages of all.

        Raises:
            ConfigError: The axis has other than n indices.
        """

        self._check_axis(axis, 1)

        def mix_leaf(leaf: jax.Array) -> jax.Array:
            row = jnp.asarray(self.weights, leaf.dtype)[jax.lax.axis_index(axis)]
            messages: jax.Array = jax.lax.all_gather(leaf, axis)  # f[n, ...]
            return _average(row, messages)

        mixed: Tree = jax.tree.map(mix_leaf, message)
        return mixed

    def mix_block(self, block: jax.Array, axis: str) -> jax.Array:
        """Average the messages of a device that has several consecutive nodes.

        A circulant takes one ``ppermute`` for each device that has a neighbour of one of these
        nodes, and sends only the messages that are needed there. Any other graph takes one
        ``all_gather``.

        Args:
            block: f[b, d], the messages of nodes ``b * i`` to ``b * i + b - 1``.
            axis: the named axis with one index i a device, ``n / b`` in all.

        Returns:
            f[b, d], the averages.

        Raises:
            ConfigError: The devices of the axis do not have n nodes in all.
        """
        size = len(block)
        self._check_axis(axis, size)
        if self.offset_weights is None:
            messages: jax.Array = jax.lax.all_gather(block, axis, tiled=True)  # f[n, d]
            weights = jnp.asarray(self.weights, block.dtype).reshape(-1, size, self.num_nodes)
            return _average(weights[jax.lax.axis_index(axis)], messages)
        mixed = block
        num_devices = self.num_nodes // size
        for shift, weights_of in self._weights_by_shift(size).items():
            senders = np.flatnonzero(weights_of.any(0))  # within the sending device's block
            received = block[senders]
            if shift:
                pairs = [(i, (i + shift) % num_devices) for i in range(num_devices)]
                received = jax.lax.ppermute(received, axis, pairs)
            for sender, message in zip(senders, received, strict=True):
                # Differences, not weighted values: weights such as 1/3 do not sum to 1 once
                # rounded, and a sum of weighted values would scale what the nodes agree on.
                weight = jnp.asarray(weights_of[:, sender, None], block.dtype)
                mixed = mixed + weight * (message - block)
        return mixed

    def _check_axis(self, axis: str, size: int) -> None:
        """Raise ``ConfigError`` unless a named axis with ``size`` nodes an index has n in all."""
        num_indices = jax.lax.axis_size(axis)
        if num_indices * size != self.num_nodes:
            raise ConfigError(
                f"axis {axis!r} has {num_indices} indices with {size} nodes each; graph "
                f"{self.name!r} has {self.num_nodes} nodes"
            )

    def _weights_by_shift(self, size: int) -> dict[int, np.ndarray]:
        """Return f64[size, size] for each device whose messages a circulant needs.

        Args:
            size: nodes of a device, b.

        Returns:
            By the distance in devices: weight [k, l] of the sender's node l at the receiver's node
            k. A node's own weight is left out.
        """
        num_devices = self.num_nodes // size
        by_shift: dict[int, np.ndarray] = {}
        for offset, weight in (self.offset_weights or {}).items():
            for receiver in range(size) if offset else ():
                device, sender = divmod(receiver - offset, size)
                weights = by_shift.setdefault(-device % num_devices, np.zeros((size, size)))
                weights[receiver, sender] += weight
        return dict(sorted(by_shift.items()))


def ring(num_nodes: int) -> Graph:
    """Return a ring: each node averages equally with the two beside it."""
    return _circulant("ring", num_nodes, (1, -1))


def directed_ring(num_nodes: int) -> Graph:
    """Return a directed ring: each node averages equally with the one before it."""
    return _circulant("directed ring", num_nodes, (1,))


def exponential(num_nodes: int) -> Graph:
    """Return a directed exponential graph: nodes average with those 1, 2, 4, ... before them."""
    powers = (1 << k for k in range(int(num_nodes).bit_length()))
    return _circulant("exponential", num_nodes, powers)


def dense(num_nodes: int) -> Graph:
    """Return a dense graph: each node averages with the nearest quarter of the nodes on each side.

    The paper names a dense graph and does not define it; this is ours. Of 4 to 7 nodes it is the
    ring, of fewer the complete graph.
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
    if isinstance(weights, np.ndarray | jax.Array) and np.iscomplexobj(weights):
        raise ConfigError(f"a mixing matrix is n by n real numbers; this one is {weights.dtype}")
    try:
        matrix = np.array(weights, np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a mixing matrix is n by n numbers: {error}") from error
    return Graph(name, matrix)


def _average(weights: jax.Array, messages: jax.Array) -> jax.Array:
    """Return ``weights @ messages`` for weights f[..., n] that sum to 1 and messages f[n, ...].

    Relative to one of the messages, so that what all agree on is kept to the last bit.
    """
    pivot = messages[0]
    # Accelerators round the factors of a product to 8 or 11 bits unless told otherwise.
    return pivot + jnp.tensordot(
        weights, messages - pivot, axes=1, precision=jax.lax.Precision.HIGHEST
    )


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


def _rho(matrix: np.ndarray) -> float:
    """Return ``|W - 11^T/n|_2^2`` of a mixing matrix."""
    return float(np.linalg.norm(matrix - 1 / len(matrix), ord=2) ** 2)


def _obstacle(matrix: np.ndarray) -> str:
    """Return why a matrix of a connected graph has rho = 1 within rounding, and what to do."""
    if _rho((matrix + np.eye(len(matrix))) / 2) <= 1 - RHO_TOLERANCE:
        return (
            "|W - J|_2 = 1, as nodes exchange their values without keeping a share; use (W + I) / 2"
        )
    return (
        "|W - J|_2 = 1 within rounding, as the links between parts of the graph have almost no "
        "weight; give them more"
    )
