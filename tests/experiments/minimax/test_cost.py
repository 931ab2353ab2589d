"""What a message holds is read from the program; times are positive."""

import jax
import numpy as np

from experiments.minimax import cost
from experiments.minimax.rivals import METHODS
from kvflow_jax.minimax import DAdaST, exponential, over_axis, replicate


def test_the_run_by_hand_is_the_library_s(monkeypatch):
    monkeypatch.setattr(cost, "STEPS", 5)
    rule, graph = DAdaST(), exponential(cost.NUM_NODES)
    rng = np.random.default_rng(0)
    data = (
        rng.normal(size=(16, 256, cost.INPUTS)).astype(np.float32),
        rng.integers(0, cost.CLASSES, (16, 256)).astype(np.int32),
    )
    x, y = replicate(cost._parameters(), 16)
    keys = jax.random.split(jax.random.key(0), 16)
    final, _ = over_axis(rule, graph, cost.gradients, steps=5)(data, x, y, keys)
    by_hand = cost._by_hand(rule, graph)(data, x, y, keys)
    for one, other in zip(
        jax.tree.leaves((final.x, final.y, final.accum_x)),
        jax.tree.leaves((by_hand[0], by_hand[1], by_hand[2])),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_messages_by_method(monkeypatch):
    monkeypatch.setattr(cost, "STEPS", 2)
    result = cost.run(quick=True)
    extra = result.figures["extra_bytes"]
    parameters = result.figures["parameter_bytes"]
    assert extra == dict.fromkeys(METHODS, 0) | {
        "D-AdaST": 8,
        "GT-DA": parameters,
        "DM-HSGD": parameters,
        "D-AdaST, coordinate-wise": parameters,
    }
    assert result.figures["step_over_by_hand"] > 0
    assert [finding.is_reached for finding in result.findings] == [True, None]
