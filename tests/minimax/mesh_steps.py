"""Check runs with a node a device against runs on one device, and their collectives.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.minimax.mesh_steps
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np

from kvflow_jax.minimax import (
    DAdaST,
    dense,
    exponential,
    from_matrix,
    full,
    observe_accumulators,
    over_axis,
    over_mesh,
    replicate,
    ring,
    simplex,
)

NUM_NODES = 8
NUM_SAMPLES = 16
COLLECTIVE = re.compile(
    r" (collective-permute|all-gather|all-reduce|reduce-scatter|all-to-all)(?:-start)?\("
)


def loss(params, weights, data):
    """Loss of a small network over samples whose weights an adversary picks on a simplex."""
    inputs, targets = data
    hidden = jnp.tanh(inputs @ params["in"] + params["bias"])
    errors = jnp.square(hidden @ params["out"] - targets)  # f[NUM_SAMPLES]
    return weights @ errors - jnp.sum(jnp.square(weights - 1 / NUM_SAMPLES))


def gradients(data, x, y, key):
    """Gradients with noise, so that keys matter."""
    grads_x, grads_y = jax.grad(loss, argnums=(0, 1))(x, y, data)
    return grads_x, grads_y + 0.01 * jax.random.normal(key, grads_y.shape)


def inputs_of_all_nodes():
    """Data, x, y and keys with a leading axis of NUM_NODES."""
    keys = jax.random.split(jax.random.key(1), 6)
    data = (
        jax.random.normal(keys[0], (NUM_NODES, NUM_SAMPLES, 4)),
        jax.random.normal(keys[1], (NUM_NODES, NUM_SAMPLES)),
    )
    params = {
        "in": jax.random.normal(keys[2], (4, 12)),
        "bias": jnp.zeros(12),
        "out": jax.random.normal(keys[3], (12,)),
    }
    weights = jnp.full(NUM_SAMPLES, 1 / NUM_SAMPLES)
    return (
        data,
        replicate(params, NUM_NODES),
        replicate(weights, NUM_NODES),
        jax.random.split(keys[4], NUM_NODES),
    )


def path():
    """A path, the ends of which have one neighbour: no circulant."""
    edges = np.eye(NUM_NODES, k=1) + np.eye(NUM_NODES, k=-1)
    weights = edges / 3
    return from_matrix(weights + np.diag(1 - weights.sum(1)), "path")


def main() -> None:
    """Compare 200 steps on five graphs."""
    assert len(jax.devices()) == NUM_NODES, "set XLA_FLAGS as the docstring says"
    mesh = jax.make_mesh((NUM_NODES,), ("nodes",))
    inputs = inputs_of_all_nodes()
    arguments = {"steps": 200, "every": 10, "project": simplex, "observe": observe_accumulators}
    for graph in (ring(8), exponential(8), dense(8), full(8), path()):
        rule = DAdaST(gamma_x=0.3, gamma_y=0.3)
        on_mesh = over_mesh(rule, graph, gradients, mesh=mesh, **arguments)
        on_axis = over_axis(rule, graph, gradients, **arguments)
        one, other = on_mesh(*inputs), on_axis(*inputs)
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(other[0].x))
        for name in ("x", "y"):
            pairs = zip(
                jax.tree.leaves(getattr(one[0], name)),
                jax.tree.leaves(getattr(other[0], name)),
                strict=True,
            )
            difference = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)
            print(graph.name, name, difference / largest)
            assert difference <= 2e-6 * largest, (graph.name, name, difference, largest)
        np.testing.assert_allclose(one[1], other[1], rtol=1e-4)
        again = on_mesh(*inputs)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(a, b)
        found = COLLECTIVE.findall(on_mesh.lower(*inputs).compile().as_text())
        print(graph.name, found)
        if graph.offset_weights is None:
            assert found == ["all-gather"]
        else:
            assert found == ["collective-permute"] * (len(graph.offset_weights) - 1)


if __name__ == "__main__":
    main()
