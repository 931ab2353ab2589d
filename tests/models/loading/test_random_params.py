"""Random weights depend on the seed alone, and fit the model."""

import numpy as np
import pytest

from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.random_params import random_params
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import XLA, XLA_ON_CPU
from tests.models.families.cases import CONFIGS

CONFIG = read_config(CONFIGS["llama"] | {"num_hidden_layers": 2})


@pytest.fixture(scope="module")
def stacked():
    """The weights of seed 3, layers stacked."""
    return random_params(Model.build(CONFIG, ops=XLA), seed=3)


def test_stacked_and_unstacked_layers_have_the_same_weights(stacked):
    model = Model.build(CONFIG, ops=XLA_ON_CPU)
    params = random_params(model, seed=3)
    assert {name: (w.shape, w.dtype) for name, w in params.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in model.specs.items()
    }
    for name, weight in stacked.items():
        for leaf, layer in model.leaves(name):
            plain = np.asarray(weight if layer is None else weight[layer])
            np.testing.assert_array_equal(params[leaf], model.pack(name, plain))


def test_weights_differ_by_seed_and_by_layer(stacked):
    other = random_params(Model.build(CONFIG, ops=XLA), seed=4)
    for name in ("embed.weight", "layers.mlp.down_proj.weight"):
        assert not np.array_equal(stacked[name], other[name])
    first, second = np.asarray(stacked["layers.mlp.down_proj.weight"])
    assert not np.array_equal(first, second)
