"""D-AdaST: distributed minimax over a graph of nodes, on one device or a mesh. Knows no cache.

Eight nodes play ``min_x max_y`` of the mean of functions ``2xy + x^2/2 - y^2/2 + c_i x``, each with
a c_i that only one node knows::

    def gradients(c, x, y, key):
        return 2 * y + x + c, 2 * x - y

    run = over_axis(DAdaST(), exponential(8), gradients, steps=2000)
    keys = jax.random.split(jax.random.key(0), 8)
    final, seen = run(jnp.arange(8.0), jnp.ones(8), jnp.ones(8), keys)
    final.x  # about -0.7 at all nodes: -mean(c) / 5
"""

from kvflow_jax.minimax.dadast import DAdaST, State
from kvflow_jax.minimax.graphs import (
    Graph,
    dense,
    directed_ring,
    exponential,
    from_matrix,
    full,
    ring,
)
from kvflow_jax.minimax.nodes import (
    Run,
    local_part,
    observe_accumulators,
    over_axis,
    over_mesh,
    replicate,
)
from kvflow_jax.minimax.processes import join
from kvflow_jax.minimax.rule import Rule
from kvflow_jax.minimax.sets import ball, box, simplex

__all__ = [
    "DAdaST",
    "Graph",
    "Rule",
    "Run",
    "State",
    "ball",
    "box",
    "dense",
    "directed_ring",
    "exponential",
    "from_matrix",
    "full",
    "join",
    "local_part",
    "observe_accumulators",
    "over_axis",
    "over_mesh",
    "replicate",
    "ring",
    "simplex",
]
