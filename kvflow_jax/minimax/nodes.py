"""Runs of many steps at all nodes of a graph, from one program of a single node.

``over_axis`` runs the nodes as a leading axis on one device (``vmap``), ``over_mesh`` a node a
device (``shard_map``). The program is the same but for how messages are averaged: a matrix product
over the axis, or collectives between devices. The results agree within rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kvflow_jax.errors import ConfigError, DivergenceError
from kvflow_jax.minimax.dadast import DAdaST, State, squared_norm
from kvflow_jax.minimax.graphs import Graph

Data = TypeVar("Data")
X = TypeVar("X")
Y = TypeVar("Y")
Seen = TypeVar("Seen")
Tree = TypeVar("Tree")

# Gradients in x and y of one node's function at (x, y): (data, x, y, key) -> (grads_x, grads_y).
Gradients = Callable[[Data, X, Y, jax.Array], tuple[X, Y]]
# One node's run: (data, state, key) -> (final state, observations, step that failed or -1).
NodeProgram = Callable[[Data, State[X, Y], jax.Array], tuple[State[X, Y], Seen, jax.Array]]

AXIS = "nodes"


class Run(Generic[Data, X, Y, Seen]):
    """A run of ``steps`` steps at all nodes, compiled at the first call.

    Every array that it takes and returns has the nodes as its leading axis.
    """

    def __init__(
        self,
        rule: DAdaST,
        graph: Graph,
        program: NodeProgram[Data, X, Y, Seen],
        sharding: NamedSharding | None = None,
    ) -> None:
        self._graph = graph
        self._sharding = sharding
        self._init = jax.jit(jax.vmap(rule.init))
        self._program = jax.jit(program)

    def __call__(self, data: Data, x: X, y: Y, keys: jax.Array) -> tuple[State[X, Y], Seen]:
        """Run from the start.

        Args:
            data: pytree of [n, ...], what each node's gradients are computed from.
            x: pytree of f[n, ...], where each node begins to minimise (see ``replicate``).
            y: pytree of f[n, ...], where each node begins to maximise.
            keys: key[n], one a node. Step k of a node draws from ``fold_in(key, k)``.

        Returns:
            The final state of all nodes, and what ``observe`` returned, [n, steps // every, ...].

        Raises:
            ConfigError: A leaf has no leading axis of n, or is not what ``DAdaST.init`` takes.
            DivergenceError: A gradient was not finite. The message names the node and the step.
        """
        self._check_leading_axis(x, "x")
        self._check_leading_axis(y, "y")
        return self.resume(data, self._init(x, y), keys)

    def resume(self, data: Data, state: State[X, Y], keys: jax.Array) -> tuple[State[X, Y], Seen]:
        """Run on from the state that an earlier run ended with, with the same data and keys.

        Two runs one after the other give the same bits as one of as many steps.
        """
        for tree, name in ((data, "data"), (state, "state"), (keys, "keys")):
            self._check_leading_axis(tree, name)
        final, seen, failed = self._program(*self._place(data, state, keys))
        _raise_if_failed(np.asarray(failed))
        return final, seen

    def lower(self, data: Data, x: X, y: Y, keys: jax.Array) -> jax.stages.Lowered:
        """Return the program of a run before compilation, to read its collectives or its cost."""
        return self._program.lower(*self._place(data, self._init(x, y), keys))

    def _place(
        self, data: Data, state: State[X, Y], keys: jax.Array
    ) -> tuple[Data, State[X, Y], jax.Array]:
        """Return the arguments of the program on the devices of the mesh, if there is one."""
        if self._sharding is None:
            return data, state, keys
        placed: tuple[Data, State[X, Y], jax.Array] = jax.device_put(
            (data, state, keys), self._sharding
        )
        return placed

    def _check_leading_axis(self, tree: object, name: str) -> None:
        """Raise ``ConfigError`` unless every leaf has a leading axis with one index a node."""
        expected = self._graph.num_nodes
        for path, leaf in jax.tree.leaves_with_path(tree):
            shape = jnp.shape(leaf)
            if not shape or shape[0] != expected:
                raise ConfigError(
                    f"{name}{jax.tree_util.keystr(path)} has shape {shape}; its first axis must "
                    f"have length {expected}, one index a node of graph {self._graph.name!r}"
                )


def observe_accumulators(state: State[X, Y]) -> tuple[jax.Array, jax.Array]:
    """Return a node's two accumulators, from which the inconsistency of stepsizes follows."""
    return state.accum_x, state.accum_y


def over_axis(
    rule: DAdaST,
    graph: Graph,
    gradients: Gradients[Data, X, Y],
    *,
    steps: int,
    observe: Callable[[State[X, Y]], Seen],
    every: int = 1,
    project: Callable[[Y], Y] | None = None,
) -> Run[Data, X, Y, Seen]:
    """Return a run with all nodes on one device, as a leading axis.

    Args:
        rule: by which each node steps.
        graph: of the nodes.
        gradients: of one node's function; no leading axis.
        steps: number of steps, a multiple of ``every``.
        observe: what to record of a node's state, after every ``every``-th step.
        every: number of steps between two observations.
        project: projection onto the set of y; None: no constraint.

    Raises:
        ConfigError: ``steps`` is no positive multiple of ``every``.
    """
    program = _node_program(
        rule,
        lambda message: graph.mix_by_product(message, AXIS),
        gradients,
        steps=steps,
        observe=observe,
        every=every,
        project=project,
    )
    return Run(rule, graph, jax.vmap(program, axis_name=AXIS))


def over_mesh(
    rule: DAdaST,
    graph: Graph,
    gradients: Gradients[Data, X, Y],
    *,
    mesh: Mesh,
    steps: int,
    observe: Callable[[State[X, Y]], Seen],
    every: int = 1,
    project: Callable[[Y], Y] | None = None,
) -> Run[Data, X, Y, Seen]:
    """Return a run with one node a device of a mesh with one axis.

    Circulant graphs take one collective permute a neighbour and step. Others take an all-gather.

    Args:
        mesh: as many devices as the graph has nodes, along one axis.
        rule, graph, gradients, steps, observe, every, project: as ``over_axis`` takes them.

    Raises:
        ConfigError: The mesh has other than one axis or one device a node, or ``steps`` is no
            positive multiple of ``every``.
    """
    if len(mesh.axis_names) != 1 or mesh.size != graph.num_nodes:
        raise ConfigError(
            f"graph {graph.name!r} has {graph.num_nodes} nodes and needs a mesh with one axis of "
            f"as many devices; this one is {dict(mesh.shape)}: use over_axis, or another mesh"
        )
    (axis,) = mesh.axis_names
    program = _node_program(
        rule,
        lambda message: graph.mix(message, axis),
        gradients,
        steps=steps,
        observe=observe,
        every=every,
        project=project,
    )

    def on_device(
        data: Data, state: State[X, Y], keys: jax.Array
    ) -> tuple[State[X, Y], Seen, jax.Array]:
        # A device has a leading axis of length 1.
        data, state, keys = jax.tree.map(lambda leaf: leaf[0], (data, state, keys))
        results: tuple[State[X, Y], Seen, jax.Array] = jax.tree.map(
            lambda leaf: leaf[None], program(data, state, keys)
        )
        return results

    spec = PartitionSpec(axis)
    on_mesh = jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec)
    return Run(rule, graph, on_mesh, NamedSharding(mesh, spec))


def replicate(tree: Tree, num_nodes: int) -> Tree:
    """Return a pytree of [n, ...] in which every node has the same values."""
    stacked: Tree = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (num_nodes, *jnp.shape(leaf))), tree
    )
    return stacked


def _node_program(
    rule: DAdaST,
    mix: Callable[[jax.Array], jax.Array],
    gradients: Gradients[Data, X, Y],
    *,
    steps: int,
    observe: Callable[[State[X, Y]], Seen],
    every: int,
    project: Callable[[Y], Y] | None,
) -> NodeProgram[Data, X, Y, Seen]:
    """Return the program of one node, which ``over_axis`` and ``over_mesh`` run at all of them."""
    if not (every >= 1 and steps >= 1 and steps % every == 0):
        raise ConfigError(
            f"steps must be a positive multiple of every; steps = {steps}, every = {every}"
        )

    def program(
        data: Data, state: State[X, Y], key: jax.Array
    ) -> tuple[State[X, Y], Seen, jax.Array]:
        def one_step(state: State[X, Y], _: None) -> tuple[State[X, Y], jax.Array]:
            step_key = jax.random.fold_in(key, state.step)
            grads_x, grads_y = gradients(data, state.x, state.y, step_key)
            # The squared norms, not the entries: once one overflows, the node would stand still.
            # The step computes them, too, so that the compiler takes them from there.
            dtype = state.accum_x.dtype
            norm = squared_norm(grads_x, dtype) + squared_norm(grads_y, dtype)
            state = rule.step(state, grads_x, grads_y, mix, project)
            return state, jnp.isfinite(norm)

        def stretch(state: State[X, Y], _: None) -> tuple[State[X, Y], tuple[Seen, jax.Array]]:
            state, is_finite = jax.lax.scan(one_step, state, length=every)
            return state, (observe(state), is_finite)

        final, (seen, is_finite) = jax.lax.scan(stretch, state, length=steps // every)
        is_finite = is_finite.ravel()  # bool[steps]
        failed = jnp.where(is_finite.all(), -1, state.step + jnp.argmin(is_finite))
        return final, seen, failed

    return program


def _raise_if_failed(failed: np.ndarray) -> None:
    """Raise ``DivergenceError`` if a node failed; i[n], the first step that failed or -1."""
    nodes = np.flatnonzero(failed >= 0)
    if nodes.size:
        # Its neighbours fail after it, from what it sent them.
        first = nodes[np.argmin(failed[nodes])]
        raise DivergenceError(
            f"the gradients of node {first} at step {failed[first]} are not finite, or too large "
            "to square: check its data and its function there, or use smaller stepsizes or a "
            "larger start"
        )
