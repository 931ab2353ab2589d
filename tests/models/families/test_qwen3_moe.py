"""What is particular to Qwen3-MoE: the experts."""

import numpy as np
import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.config import MoeConfig
from kvflow_jax.models.families.qwen3_moe import FAMILY
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.model import Model
from tests.models import tiny
from tests.models.families.expected import Expected
from tests.models.sources import read_folder, read_problems

VARIANTS = {
    "qwen3-moe-unnormalised": {
        **FAMILY.tiny,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
        "attention_bias": True,
        "use_sliding_window": True,
        "sliding_window": 24,
        "tie_word_embeddings": True,
    },
}

EXPECTED = {
    "qwen3-moe": Expected(
        logits=(
            (-1.05862, -1.63312, -0.18514, 0.42326, -1.0657),
            (-0.89431, -0.59423, 0.78644, -0.87471, -0.3908),
            (-0.13107, -1.15778, 0.81999, -1.50214, 0.04824),
            (-0.92837, -1.03154, 0.53268, -0.04086, 0.21085),
        ),
        greedy=(
            *(38, 259, 297, 52, 105, 296, 150, 33, 1, 294, 248, 10, 184, 210, 184, 1),
            *(211, 297, 175, 127, 1, 266, 1, 98, 11, 10, 117, 270, 211, 187, 184, 84),
        ),
    ),
    "qwen3-moe-unnormalised": Expected(
        logits=(
            (-0.02646, -0.31587, 1.4088, 0.19512, 1.59168),
            (-0.82507, -2.24762, 0.0845, 1.78371, 1.35149),
            (-0.0816, 0.17262, -0.97288, -0.75297, -0.76517),
            (2.07626, 1.07047, -1.67513, -1.36619, 1.28777),
        ),
        greedy=(
            *(125, 125, 125, 125, 125, 125, 125, 125, 125, 125, 125, 235, 235, 235, 235, 235),
            *(235, 235, 235, 235, 235, 235, 235, 235, 235, 235, 235, 235, 235, 235, 235, 235),
        ),
    ),
}


def test_every_layer_has_the_window_if_it_is_switched_on():
    assert read_config(VARIANTS["qwen3-moe-unnormalised"]).windows == (24, 24, 24)
    assert read_config(FAMILY.tiny).windows == ()


def test_num_experts_has_the_name_that_transformers_5_writes_too():
    new = {key: value for key, value in FAMILY.tiny.items() if key != "num_experts"}
    assert read_config(new | {"num_local_experts": 8}) == read_config(FAMILY.tiny)
    assert read_config(FAMILY.tiny).moe == MoeConfig(8, 3, 40, normalise_weights=True)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"mlp_only_layers": [1]}, "layers without a mixture of experts are not supported"),
        ({"decoder_sparse_step": 2}, "layers without a mixture of experts are not supported"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok 9 is above num_experts 8"),
        ({"num_experts": None}, "config.json lacks num_experts"),
        ({"num_experts_per_tok": -2}, "must be above 0 and finite, but num_experts_per_tok is -2"),
    ],
)
def test_experts_that_are_not_supported_are_rejected(change, part):
    with pytest.raises(ModelLoadError, match=part):
        read_config({**FAMILY.tiny, **change})


def test_a_missing_expert_is_named(tmp_path):
    weights = tiny.hf_weights(FAMILY.tiny)
    del weights["model.layers.1.mlp.experts.5.up_proj.weight"]
    weights["model.layers.1.mlp.experts.8.up_proj.weight"] = np.zeros((40, 64), np.float32)
    model = Model.build(read_config(FAMILY.tiny))
    folder = tiny.write_folder(tmp_path / "m", FAMILY.tiny, weights=weights)
    message = read_problems(folder, model)
    assert "missing tensor model.layers.1.mlp.experts.5.up_proj.weight" in message
    assert "unexpected tensor model.layers.1.mlp.experts.8.up_proj.weight" in message


def test_experts_are_stacked(tmp_path):
    model = Model.build(read_config(FAMILY.tiny))
    stacked = read_folder(model, tiny.write_folder(tmp_path / "m", FAMILY.tiny))
    down = tiny.hf_weights(FAMILY.tiny)["model.layers.2.mlp.experts.5.down_proj.weight"]
    np.testing.assert_array_equal(stacked["layers.mlp.down_proj.weight"][2, 5], down.T)
