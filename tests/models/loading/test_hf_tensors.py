"""Each Hugging Face tensor has its slice of a weight, and a wrong one is reported by its name."""

import pytest

from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.hf_tensors import (
    canonical_name,
    header_problems,
    hf_names_of,
    weight_slices,
)
from kvflow_jax.models.model import Model
from tests.models.families.cases import CONFIGS

MODEL = Model.build(read_config(CONFIGS["llama"]))


def headers_of(model, dtype="BF16"):
    return [(key, target.shape, dtype) for key, target in weight_slices(model).items()]


def test_query_key_and_value_are_fused_side_by_side():
    slices = weight_slices(MODEL)
    prefix = "model.layers.2.self_attn"
    parts = [slices[f"{prefix}.{part}_proj.weight"] for part in "qkv"]
    assert {part.name for part in parts} == {"layers.attention.qkv_proj.weight"}
    assert {part.index for part in parts} == {(2,)}
    assert [part.columns for part in parts] == [slice(0, 64), slice(64, 96), slice(96, 128)]
    assert [part.shape for part in parts] == [(64, 64), (32, 64), (32, 64)]
    assert all(part.transposed for part in parts)


def test_right_headers_have_no_problems():
    assert header_problems(MODEL, headers_of(MODEL)) == []
    buffer = ("model.layers.0.self_attn.rotary_emb.inv_freq", (8,), "F32")
    image = ("vision_tower.embeddings.weight", (3, 3), "F32")
    assert header_problems(MODEL, [*headers_of(MODEL), buffer, image]) == []


def test_every_wrong_header_is_reported():
    (first, *_), (second, shape, _), (third, third_shape, _), *right = headers_of(MODEL)
    wrong = [(second, (1, *shape), "F32"), (third, third_shape, "I8"), ("extra", (2,), "F32")]
    assert header_problems(MODEL, right + wrong) == [
        f"{second}: expected shape {list(shape)}, found {[1, *shape]}",
        f"{third}: expected float32, bfloat16 or float16, found I8",
        "unexpected tensor extra [2]",
        f"missing tensor {first}",
    ]


def test_a_duplicate_tensor_is_reported():
    headers = headers_of(MODEL)
    assert header_problems(MODEL, [*headers, headers[0]]) == [f"duplicate tensor {headers[0][0]}"]


def test_an_output_projection_is_unexpected_only_without_tied_embeddings():
    head = ("lm_head.weight", (300, 64), "F32")
    assert header_problems(MODEL, [*headers_of(MODEL), head]) == []
    untied = Model.build(read_config(CONFIGS["llama-untied-mha"]))
    assert "lm_head.weight" in weight_slices(untied)
    assert "lm_head.weight" not in weight_slices(MODEL)


def test_a_weight_is_named_by_the_tensors_that_fill_it():
    config = MODEL.config
    assert hf_names_of(config, "layers.mlp.gate_up_proj.weight", 1) == [
        "model.layers.1.mlp.gate_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    ]
    assert hf_names_of(config, "embed.weight", 0) == ["model.embed_tokens.weight"]
    moe = read_config(CONFIGS["qwen3-moe"])
    expected = ["model.layers.0.mlp.experts.*.down_proj.weight"]
    assert hf_names_of(moe, "layers.mlp.down_proj.weight", 0) == expected


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("model.language_model.norm.weight", "model.norm.weight"),
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.norm.weight", "model.norm.weight"),
    ],
)
def test_the_prefix_of_multimodal_checkpoints_is_removed(key, expected):
    assert canonical_name(key) == expected
