"""The engine's view of a model: names, shapes and forms of its weights, and its functions."""

import jax.numpy as jnp
import numpy as np
import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.random_params import random_params
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import XLA, XLA_ON_CPU
from tests.models import tiny
from tests.models.families.cases import CONFIGS
from tests.support.native import PACKING

CONFIG = read_config(CONFIGS["llama-linear-rope-biased"])
SCANNED, UNROLLED = (Model.build(CONFIG, ops=ops) for ops in (XLA, XLA_ON_CPU))
DOWN_PROJ, NORM = "layers.mlp.down_proj.weight", "layers.mlp_norm.weight"


def test_scanned_layers_equal_unrolled_ones():
    tokens = tiny.prompt_tokens(24)
    logits = [
        tiny.Sequence(model, random_params(model, seed=3), 24).feed(tokens)
        for model in (SCANNED, UNROLLED)
    ]
    np.testing.assert_allclose(*logits, atol=1e-5)


def test_scanned_models_hold_stacked_weights():
    assert SCANNED.specs == SCANNED.stacked_specs
    assert SCANNED.leaves(DOWN_PROJ) == [(DOWN_PROJ, None)]


def test_unrolled_models_hold_a_matrix_per_layer_and_stacked_vectors():
    assert UNROLLED.leaves(NORM) == [(NORM, None)]
    leaves = UNROLLED.leaves(DOWN_PROJ)
    assert leaves == [(f"layers.{i}.mlp.down_proj.weight", i) for i in range(CONFIG.num_layers)]
    for name, _ in leaves:
        assert UNROLLED.specs[name].shape == UNROLLED.stacked_specs[DOWN_PROJ].shape[1:]
    assert UNROLLED.stacked_specs == SCANNED.stacked_specs


@pytest.mark.parametrize(
    "ops", [XLA, XLA_ON_CPU, *PACKING.values()], ids=["scanned", "unrolled", *PACKING]
)
def test_packed_leaves_have_the_shapes_of_the_specs(ops):
    model = Model.build(CONFIG, ops=ops)
    found = {}
    for stacked_name, spec in model.stacked_specs.items():
        stacked = np.zeros(spec.shape, np.float32)
        for name, layer in model.leaves(stacked_name):
            leaf = stacked if layer is None else stacked[layer]
            found[name] = model.pack(stacked_name, leaf).shape
    assert found == {name: spec.shape for name, spec in model.specs.items()}


def test_the_weights_of_unrolled_layers_are_matrices_and_vectors():
    params = {name: name for name in UNROLLED.specs}
    names = [*UNROLLED.embed_and_head_leaves(params), *UNROLLED.vector_leaves(params)]
    for layer in range(CONFIG.num_layers):
        names += UNROLLED.matrix_leaves(params, layer)
    assert sorted(names) == sorted(params)


def test_every_weight_has_the_dtype_of_the_model():
    model = Model.build(CONFIG, "bfloat16")
    assert {spec.dtype for spec in model.specs.values()} == {jnp.dtype("bfloat16")}


def test_a_dtype_that_weights_cannot_have_is_an_error():
    with pytest.raises(ModelLoadError, match="'int8' is not supported; supported: auto, float32"):
        Model.build(CONFIG, "int8")
