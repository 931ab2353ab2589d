"""RoPE settings are read from the config.json of any transformers release."""

import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.hf_rope import read_ropes
from kvflow_jax.models.rope import RopeConfig
from tests.models import tiny

LLAMA3 = tiny.CONFIGS["llama3-rope"]


def test_old_and_new_rope_fields_read_the_same():
    old = {key: value for key, value in LLAMA3.items() if not key.startswith("rope")}
    new = old | {"rope_parameters": {"rope_theta": 500_000.0, **LLAMA3["rope_scaling"]}}
    oldest = old | {
        "rope_theta": 500_000.0,
        "rope_scaling": {"type": "llama3", **LLAMA3["rope_scaling"], "rope_type": "llama3"},
    }
    expected = RopeConfig(500_000.0, "llama3", 8.0, 1.0, 4.0, original_max_len=32)
    for hf in (LLAMA3, new, oldest):
        assert read_config(hf).rope == expected


@pytest.mark.parametrize(
    ("scaling", "part"),
    [
        (
            {"rope_type": "llama3", "factor": 8.0},
            "'llama3' needs low_freq_factor, high_freq_factor",
        ),
        ({"rope_type": "yarn"}, "'yarn' needs factor"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": False}, "without truncation"),
        ({"type": "su", "long_factor": [1.0]}, "'longrope' needs short_factor"),
    ],
)
def test_missing_and_unsupported_fields_of_rope_scaling_are_named(scaling, part):
    with pytest.raises(ModelLoadError, match=part):
        read_config(LLAMA3 | {"rope_scaling": scaling})


def test_rope_scaling_takes_precedence_over_rope_parameters():
    """Model cards ask users to add it to a config.json that transformers 5 has written."""
    hf = {key: value for key, value in LLAMA3.items() if not key.startswith("rope")}
    hf["rope_parameters"] = {"rope_theta": 1e6, "rope_type": "default"}
    hf |= {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    rope = read_config(hf).rope
    assert (rope.kind, rope.theta, rope.factor) == ("yarn", 1e6, 4.0)


def test_gemmas_rope_parameters_by_kind_of_layer():
    """As transformers 5 writes them."""
    old = tiny.CONFIGS["gemma3-linear-rope"]
    new = {key: value for key, value in old.items() if not key.startswith("rope")}
    new["rope_parameters"] = {
        "full_attention": {"rope_theta": 1_000_000.0, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 10_000.0, "rope_type": "default"},
    }
    assert read_config(new) == read_config(old)


def problems_of(hf, family="llama", head_dim=16):
    problems = []
    read_ropes(hf, family, head_dim, problems)
    return problems


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({}, 0.1 * 1.3862944 + 1),  # 0.1 ln 4 + 1, as in the paper
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
    ],
)
def test_attention_factor_of_yarn(scaling, expected):
    hf = {"max_position_embeddings": 256, "rope_scaling": {"type": "yarn", "factor": 4} | scaling}
    problems = []
    rope, _ = read_ropes(hf, "llama", 16, problems)
    assert not problems
    assert rope.attention_factor == pytest.approx(expected)


def test_factors_must_be_finite():
    hf = {"rope_scaling": {"rope_type": "linear", "factor": float("nan")}}
    assert "must be above 0 and finite" in problems_of(hf)[0]


def test_an_odd_number_of_rotary_dimensions_is_rejected():
    assert problems_of({"partial_rotary_factor": 0.2}) == [
        "partial_rotary_factor 0.2 of head_dim 16 is not an even number of dimensions from 2 to 16"
    ]


def test_an_unknown_kind_is_answered_with_the_known():
    hf = {"rope_scaling": {"rope_type": "dynamic"}}
    assert problems_of(hf) == [
        "rope type 'dynamic' is not supported; supported: default, linear, llama3, yarn, longrope"
    ]
