"""A mixture of experts is a weighted sum of MLPs."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from kvflow_jax.models.config import MoeConfig
from kvflow_jax.models.moe import ExpertsMLP
from kvflow_jax.models.ops import XLA, XLA_ON_CPU, XLA_ON_GPU
from tests.support.tiers import slow_except

# One program: outside jit JAX compiles each small operation by itself.
run = nnx.jit(lambda experts, x: experts(x))


@pytest.mark.parametrize("ops", [XLA, XLA_ON_CPU, XLA_ON_GPU], ids=lambda ops: ops.platform)
@pytest.mark.parametrize("normalise_weights", [False, True])
@pytest.mark.parametrize("num_tokens", slow_except([1, 7, 50, 300], 50))
def test_the_output_is_the_weighted_sum_of_the_top_experts(ops, normalise_weights, num_tokens):
    config = MoeConfig(
        num_experts=6,
        num_experts_per_token=2,
        intermediate_size=12,
        normalise_weights=normalise_weights,
    )
    experts = ExpertsMLP(
        16, config, activation="silu", ops=ops, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(0)
    )
    x = np.random.default_rng(1).standard_normal((num_tokens, 16), np.float32)
    router, gate_up, down = (
        np.asarray(part.weight[...]) * 20
        for part in (experts.router, experts.gate_up_proj, experts.down_proj)
    )
    for part, weight in zip(
        (experts.router, experts.gate_up_proj, experts.down_proj),
        (router, gate_up, down),
        strict=True,
    ):
        part.weight[...] = jnp.asarray(weight)
    probs = np.exp(x @ router)
    probs /= probs.sum(-1, keepdims=True)
    expected = np.zeros_like(x)
    for token, (row, prob) in enumerate(zip(x, probs, strict=True)):
        chosen = np.argsort(-prob)[:2]
        total = prob[chosen].sum() if normalise_weights else 1.0
        for e in chosen:
            gate, up = np.split(row @ gate_up[e], 2)
            expected[token] += prob[e] / total * ((gate / (1 + np.exp(-gate)) * up) @ down[e])
    np.testing.assert_allclose(run(experts, x), expected, atol=1e-4)


@pytest.mark.parametrize("ops", [XLA, XLA_ON_CPU, XLA_ON_GPU], ids=lambda ops: ops.platform)
def test_an_expert_that_is_not_chosen_has_no_effect(ops):
    """Its output may overflow to infinity in float16."""
    config = MoeConfig(
        num_experts=4, num_experts_per_token=1, intermediate_size=8, normalise_weights=True
    )
    experts = ExpertsMLP(
        16, config, activation="silu", ops=ops, dtype=jnp.dtype("float16"), rngs=nnx.Rngs(0)
    )
    experts.router.weight[...] = jnp.zeros((16, 4), jnp.float16).at[:, 2].set(1)
    experts.gate_up_proj.weight[...] = experts.gate_up_proj.weight[...].at[1].set(1000)
    out = run(experts, np.ones((5, 16), np.float16))
    assert np.isfinite(np.asarray(out)).all()
