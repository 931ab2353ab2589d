"""One of several processes, each with a part of the nodes and only their data.

python -m tests.minimax.process_steps HOST:PORT NUM_PROCESSES PROCESS_ID FILE [--dies-at SECONDS]

Writes the final parameters of its own nodes to FILE.PROCESS_ID.npz.
"""

from __future__ import annotations

import argparse
import os
import sys

import jax
import numpy as np

from kvflow_jax.errors import KVFlowError
from kvflow_jax.minimax import DAdaST, exponential, join, local_part, over_mesh, simplex
from tests.minimax.mesh_steps import NUM_NODES, gradients, inputs_of_all_nodes

STEPS = 200


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("coordinator")
    parser.add_argument("num_processes", type=int)
    parser.add_argument("process_id", type=int)
    parser.add_argument("file")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--dies-after", type=int, help="exit without a word after this many runs")
    options = parser.parse_args()
    mesh = join(options.coordinator, options.num_processes, options.process_id, timeout_s=20)
    per_process = NUM_NODES // options.num_processes
    own = slice(options.process_id * per_process, (options.process_id + 1) * per_process)
    data, x, y, keys = jax.tree.map(lambda leaf: leaf[own], inputs_of_all_nodes())
    run = over_mesh(
        DAdaST(gamma_x=0.3, gamma_y=0.3),
        exponential(NUM_NODES),
        gradients,
        mesh=mesh,
        steps=STEPS,
        project=simplex,
    )
    try:
        final, _ = run(data, x, y, keys)
        for done in range(1, options.runs):
            if done == options.dies_after:
                os._exit(3)
            final, _ = run.resume(data, final, keys)
    except KVFlowError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 4
    leaves = jax.tree.leaves(local_part((final.x, final.y)))
    np.savez(f"{options.file}.{options.process_id}.npz", *leaves)
    return 0


if __name__ == "__main__":
    sys.exit(main())
