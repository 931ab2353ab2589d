"""Random weights depend on the seed alone, and fit the model."""

import numpy as np

from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.random_params import random_params
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import XLA, XLA_ON_CPU
from tests.models import tiny

CONFIG = read_config(tiny.CONFIGS["tied-gqa"])


def test_stacked_and_unstacked_layers_have_the_same_weights():
    stacked, unstacked = (Model.build(CONFIG, ops=ops) for ops in (XLA, XLA_ON_CPU))
    expected, params = (random_params(model, seed=3) for model in (stacked, unstacked))
    assert {name: (w.shape, w.dtype) for name, w in params.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in unstacked.specs.items()
    }
    for name, weight in expected.items():
        for leaf, layer in unstacked.leaves(name):
            plain = np.asarray(weight if layer is None else weight[layer])
            np.testing.assert_array_equal(params[leaf], unstacked.pack(name, plain))


def test_weights_differ_by_seed_and_by_layer():
    model = Model.build(CONFIG, ops=XLA)
    name = "layers.mlp.down_proj.weight"
    one, same, other = (np.asarray(random_params(model, seed)[name]) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert not np.array_equal(one[0], one[1])
