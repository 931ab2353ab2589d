"""Print figures that need float64 as JSON; a process of its own, as float64 is a global switch.

JAX_ENABLE_X64=1 python -m tests.minimax.float64_figures
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np

from kvflow_jax.minimax import DAdaST, Graph, exponential, full, over_axis
from tests.minimax import reference

FROZEN = ((0.6, 0.4), (0.7, 0.3), (0.65, 0.4))


def decay(problem: reference.Bilinear, rule: DAdaST, graph: Graph, x, y, *, steps, every):
    """Return |grad_x f|^2 at the mean after every ``every``-th step, and behind them zeta^2.

    That is the inconsistency of x's stepsizes at the end, ``max_i ((v_i/mean v)^-alpha - 1)^2``.
    """
    play = over_axis(
        rule,
        graph,
        reference.gradients,
        steps=steps,
        every=every,
        observe=lambda state: (state.x, state.y),
    )
    num_nodes = graph.num_nodes
    keys = jax.random.split(jax.random.key(0), num_nodes)
    final, (xs, ys) = play(problem.arrays, jnp.full(num_nodes, x), jnp.full(num_nodes, y), keys)
    larger = np.maximum(final.accum_x, final.accum_y)
    zeta = np.max(((larger / larger.mean()) ** -rule.alpha - 1) ** 2)
    xs, ys = np.asarray(xs), np.asarray(ys)
    return [
        *(problem.squared_gradient_at_mean(xs[:, k], ys[:, k]) for k in range(xs.shape[1])),
        float(zeta),
    ]


def heterogeneous(num_nodes: int, spread: float) -> reference.Bilinear:
    """f_i = -y^2/2 + 2xy + a_i/2 x^2 + c_i x + d_i y: nodes differ by ``spread``, saddle at 0."""
    rng = np.random.default_rng(0)

    def deviations(scale):
        drawn = rng.normal(size=num_nodes)
        return scale * (drawn - drawn.mean())

    ones = np.ones(num_nodes)
    return reference.Bilinear(
        a=1 - deviations(spread),
        b=2 * ones,
        c=deviations(spread),
        d=deviations(0.3 * spread),
        e=ones,
    )


def main() -> None:
    """Run all problems."""
    if not jax.config.jax_enable_x64:
        raise SystemExit("set JAX_ENABLE_X64=1")
    small = DAdaST(0.1, 0.1, start=0.0)
    figures: dict[str, object] = {
        "two_nodes": decay(
            reference.two_nodes(), small, full(2), 0.0, 0.0, steps=100_000, every=1_000
        ),
        "frozen": [
            decay(
                reference.frozen(alpha, beta, 0.99),
                DAdaST(0.1, 0.1, alpha, beta, 0.0),
                full(3),
                10.0,
                9.9,
                steps=10_000,
                every=1_000,
            )
            for alpha, beta in FROZEN
        ],
        "heterogeneous": decay(
            heterogeneous(16, 1.0),
            DAdaST(0.5, 0.5, start=0.0),
            exponential(16),
            1.0,
            1.0,
            steps=10_000,
            every=1_000,
        ),
        "dtype": str(small.init(jnp.zeros(2), jnp.zeros(2)).accum_x.dtype),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
