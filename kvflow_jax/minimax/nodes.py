"""Runs of many steps at all nodes of a graph, from one program of a single node.

``over_axis`` runs the nodes as a leading axis on one device (``vmap``). ``over_mesh`` divides them
among the devices of a mesh (``shard_map``), which may belong to several processes. The program is
the same but for how messages are averaged: a matrix product over the axis, or collectives between
devices. The results agree within rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kvflow_jax.errors import ConfigError, DivergenceError
from kvflow_jax.minimax.dadast import State, accumulator_dtype, squared_norm
from kvflow_jax.minimax.graphs import Graph
from kvflow_jax.minimax.processes import gather, peer_errors
from kvflow_jax.minimax.rule import Rule, S

Data = TypeVar("Data")
X = TypeVar("X")
Y = TypeVar("Y")
Tree = TypeVar("Tree")

# Gradients in x and y of one node's function at (x, y): (data, x, y, key) -> (grads_x, grads_y).
Gradients = Callable[[Data, X, Y, jax.Array], tuple[X, Y]]
# One node's run: (data, state, key) -> (final state, observations, step that failed or -1).
NodeProgram = Callable[[Data, S, jax.Array], tuple[S, Any, jax.Array]]

AXIS = "nodes"  # of the nodes on one device


class Run(Generic[Data, X, Y, S]):
    """A run of ``steps`` steps at all nodes, compiled at the first call.

    Every array that it takes and returns has the nodes as its leading axis. On a mesh of several
    processes, each passes its own nodes' part, or arrays that are already on the mesh; results are
    on the mesh, and ``local_part`` returns a process's own.
    """

    def __init__(
        self,
        rule: Rule[S],
        graph: Graph,
        program: NodeProgram[Data, S],
        sharding: NamedSharding | None = None,
    ) -> None:
        self._graph = graph
        self._sharding = sharding
        self._init = jax.jit(jax.vmap(rule.init))
        self._program = jax.jit(program)

    def __call__(self, data: Data, x: X, y: Y, keys: jax.Array) -> tuple[S, Any]:
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
            HostLostError: Another process of the mesh is gone.
        """
        return self.resume(data, self._start(x, y), keys)

    def resume(self, data: Data, state: S, keys: jax.Array) -> tuple[S, Any]:
        """Run ``steps`` more steps from the state that an earlier run ended with.

        With the same data and keys, two runs one after the other give the same bits as one of as
        many steps: ``state.step`` counts on, and keys are folded with it.

        Args:
            data: as ``__call__`` takes it.
            state: of all nodes, as returned by a run or restored from a checkpoint;
                ``jax.vmap(rule.init)(x, y)`` has its structure.
            keys: as ``__call__`` takes them.
        """
        with peer_errors():
            final, seen, failed = self._program(*self._place(data, state, keys))
            _raise_if_failed(gather(failed))
        return final, seen

    def lower(self, data: Data, x: X, y: Y, keys: jax.Array) -> jax.stages.Lowered:
        """Return the program of a run before compilation, to read its collectives or its cost."""
        return self._program.lower(*self._place(data, self._start(x, y), keys))

    def _start(self, x: X, y: Y) -> S:
        """Return the state of all nodes, or of this process's, before the first step."""
        for tree, name in ((x, "x"), (y, "y")):
            self._check_leading_axis(tree, name)
        start: S = self._init(x, y)
        return start

    def _place(self, data: Data, state: S, keys: jax.Array) -> tuple[Data, S, jax.Array]:
        """Return the arguments of the program on the devices of the mesh, if there is one."""
        arguments = (data, state, keys)
        for tree, name in zip(arguments, ("data", "state", "keys"), strict=True):
            self._check_leading_axis(tree, name)
        sharding = self._sharding
        if sharding is None:
            return arguments
        placed: tuple[Data, S, jax.Array] = jax.tree.map(
            lambda leaf: _on_mesh(leaf, sharding), arguments
        )
        return placed

    def _check_leading_axis(self, tree: object, name: str) -> None:
        """Raise ``ConfigError`` unless every leaf has a leading axis with one index a node."""
        total = self._graph.num_nodes
        own = total if self._sharding is None else _num_own(self._sharding, total)
        for path, leaf in jax.tree.leaves_with_path(tree):
            shape = jnp.shape(leaf)
            expected = total if isinstance(leaf, jax.Array) and _is_shared(leaf) else own
            if not shape or shape[0] != expected:
                whose = "" if expected == total else " that this process has"
                raise ConfigError(
                    f"{name}{jax.tree_util.keystr(path)} has shape {shape}; its first axis must "
                    f"have length {expected}, an entry for each node of graph "
                    f"{self._graph.name!r}{whose}"
                )


def observe_accumulators(state: State[X, Y]) -> tuple[jax.Array, jax.Array]:
    """Return a node's two accumulators, from which the inconsistency of stepsizes follows."""
    return state.accum_x, state.accum_y


def over_axis(
    rule: Rule[S],
    graph: Graph,
    gradients: Gradients[Data, X, Y],
    *,
    steps: int,
    observe: Callable[[S], Any] | None = None,
    every: int = 1,
    project: Callable[[Y], Y] | None = None,
) -> Run[Data, X, Y, S]:
    """Return a run with all nodes on one device, as a leading axis.

    Args:
        rule: by which each node steps.
        graph: of the nodes.
        gradients: of one node's function, ``(data, x, y, key) -> (grads_x, grads_y)``; no leading
            axis.
        steps: number of steps, a multiple of ``every``.
        observe: what to record of a node's state, after every ``every``-th step; None: nothing.
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
    rule: Rule[S],
    graph: Graph,
    gradients: Gradients[Data, X, Y],
    *,
    mesh: Mesh,
    steps: int,
    observe: Callable[[S], Any] | None = None,
    every: int = 1,
    project: Callable[[Y], Y] | None = None,
) -> Run[Data, X, Y, S]:
    """Return a run with the nodes divided among the devices of a mesh with one axis.

    Device i has nodes ``b * i`` to ``b * i + b - 1``. Circulant graphs take one collective permute
    a step for each device that has a neighbour, so one a neighbour with a node a device. Others
    take an all-gather.

    Args:
        mesh: devices along one axis; the graph has b nodes for each. They may belong to several
            processes (``processes.join``).
        rule, graph, gradients, steps, observe, every, project: as ``over_axis`` takes them.

    Raises:
        ConfigError: The mesh has other than one axis, the nodes cannot be divided equally among its
            devices, or ``steps`` is no positive multiple of ``every``.
    """
    if len(mesh.axis_names) != 1 or graph.num_nodes % mesh.size:
        raise ConfigError(
            "over_mesh needs a mesh with one axis, whose length divides the number of nodes; graph "
            f"{graph.name!r} has {graph.num_nodes} nodes and the mesh is {dict(mesh.shape)}: use "
            "over_axis, or another mesh"
        )
    (mesh_axis,) = mesh.axis_names
    # Never the mesh axis's own name: the vmap's axis would hide it, and nothing would be sent.
    axis = f"{AXIS} of a device of {mesh_axis}"

    def mix(message: Tree) -> Tree:
        vector, unravel = ravel_pytree(message)
        block: jax.Array = jax.lax.all_gather(vector, axis)  # of this device, so nothing is sent
        mixed: Tree = unravel(graph.mix_block(block, mesh_axis)[jax.lax.axis_index(axis)])
        return mixed

    program = _node_program(
        rule, mix, gradients, steps=steps, observe=observe, every=every, project=project
    )
    spec = PartitionSpec(mesh_axis)
    # JAX's check of what varies along a mesh axis does not know the axes of a vmap inside.
    on_mesh = jax.shard_map(
        jax.vmap(program, axis_name=axis), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )
    return Run(rule, graph, on_mesh, NamedSharding(mesh, spec))


def replicate(tree: Tree, num_nodes: int) -> Tree:
    """Return a pytree of [n, ...] in which every node has the same values."""
    stacked: Tree = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (num_nodes, *jnp.shape(leaf))), tree
    )
    return stacked


def local_part(tree: Tree) -> Tree:
    """Return the part of a pytree of [n, ...] that this process's devices have, as numpy arrays.

    Of a run on one process's devices that is all of it.
    """

    def part(leaf: jax.Array) -> np.ndarray:
        if leaf.is_fully_addressable:
            return np.asarray(leaf)
        shards = sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start)
        return np.concatenate([np.asarray(shard.data) for shard in shards])

    own: Tree = jax.tree.map(part, tree)
    return own


def _num_own(sharding: NamedSharding, num_nodes: int) -> int:
    """Return the number of nodes that this process's devices of the mesh have."""
    return num_nodes // sharding.mesh.size * len(sharding.addressable_devices)


def _is_shared(leaf: jax.Array) -> bool:
    """Return whether an array is on devices of several processes already."""
    return not leaf.is_fully_addressable


def _on_mesh(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Return a leaf on the mesh; of several processes, each passes its own nodes' part."""
    on_mesh: jax.Array
    if sharding.is_fully_addressable or (isinstance(leaf, jax.Array) and _is_shared(leaf)):
        on_mesh = jax.device_put(leaf, sharding)
    elif jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _on_mesh(jax.random.key_data(leaf), sharding)
        on_mesh = jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    else:
        on_mesh = jax.make_array_from_process_local_data(sharding, np.asarray(leaf))
    return on_mesh


def _node_program(
    rule: Rule[S],
    mix: Callable[[Any], Any],
    gradients: Gradients[Data, X, Y],
    *,
    steps: int,
    observe: Callable[[S], Any] | None,
    every: int,
    project: Callable[[Y], Y] | None,
) -> NodeProgram[Data, S]:
    """Return the program of one node, which ``over_axis`` and ``over_mesh`` run at all of them."""
    if not (every >= 1 and steps >= 1 and steps % every == 0):
        raise ConfigError(
            f"steps must be a positive multiple of every; steps = {steps}, every = {every}"
        )

    def program(data: Data, state: S, key: jax.Array) -> tuple[S, Any, jax.Array]:
        def one_step(state: S, _: None) -> tuple[S, jax.Array]:
            step_key = jax.random.fold_in(key, state.step)
            grads_x, grads_y = _as_pair(gradients(data, state.x, state.y, step_key))
            after = rule.step(state, grads_x, grads_y, mix, project)  # which checks the gradients
            # The squared norms, not the entries: once one overflows, the node would stand still.
            # D-AdaST computes them, too, so that the compiler takes them from there.
            dtype = accumulator_dtype((state.x, state.y))
            norm = squared_norm(grads_x, dtype) + squared_norm(grads_y, dtype)
            return after, jnp.isfinite(norm)

        def stretch(state: S, _: None) -> tuple[S, tuple[Any, jax.Array]]:
            state, is_finite = jax.lax.scan(one_step, state, length=every)
            return state, (() if observe is None else observe(state), is_finite)

        final, (seen, is_finite) = jax.lax.scan(stretch, state, length=steps // every)
        is_finite = is_finite.ravel()  # bool[steps]
        failed = jnp.where(is_finite.all(), -1, state.step + jnp.argmin(is_finite))
        return final, seen, failed

    return program


def _as_pair(grads: Any) -> tuple[Any, Any]:
    """Return what ``gradients`` returned as two trees, or raise ``ConfigError``."""
    try:
        grads_x, grads_y = grads
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "gradients must return a pair, the gradient in x and the gradient in y; it returned a "
            f"tree {jax.tree.structure(grads)}"
        ) from error
    return grads_x, grads_y


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
