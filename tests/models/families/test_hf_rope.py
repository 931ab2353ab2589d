"""RoPE settings are read from the config.json of any transformers release."""

import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families import FAMILIES
from kvflow_jax.models.families.hf_fields import MAX_SIZE, HfFields
from kvflow_jax.models.families.hf_rope import read_rope
from kvflow_jax.models.families.hf_windows import SLIDING
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.rope import RopeConfig
from tests.models.families.cases import CONFIGS

LLAMA3 = CONFIGS["llama-llama3-rope"]


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


def read(hf, **kwargs):
    """Return RoPE of heads of 16 dimensions, and the problems found."""
    fields = HfFields({"max_position_embeddings": 256} | hf)
    rope = read_rope(fields, 16, **kwargs)
    return rope, fields.problems.messages()


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({}, 0.1 * 1.3862944 + 1),  # 0.1 ln 4 + 1, as in the paper
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
    ],
)
def test_attention_factor_of_yarn(scaling, expected):
    rope, problems = read({"rope_scaling": {"type": "yarn", "factor": 4} | scaling})
    assert not problems
    assert rope.attention_factor == pytest.approx(expected)


def test_factors_must_be_finite():
    hf = {"rope_scaling": {"rope_type": "linear", "factor": float("nan")}}
    assert read(hf)[1] == ["values must be above 0 and finite, but factor is nan"]


def test_an_odd_number_of_rotary_dimensions_is_rejected():
    assert read({"partial_rotary_factor": 0.2})[1] == [
        "partial_rotary_factor 0.2 of head_dim 16 is not an even number of dimensions from 2 to 16"
    ]


def test_an_unknown_kind_is_answered_with_the_known():
    hf = {"rope_scaling": {"rope_type": "dynamic"}}
    assert read(hf)[1] == [
        "rope type 'dynamic' is not supported; supported: default, linear, llama3, yarn, longrope"
    ]


def test_each_kind_of_layers_may_have_its_own_rope():
    scaling = {"rope_type": "linear", "factor": 8.0}
    hf = {
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6} | scaling,
            "sliding_attention": {"rope_theta": 1e4},
        }
    }
    assert read(hf) == (RopeConfig(1e6, "linear", 8.0), [])
    assert read(hf, layers=SLIDING) == (RopeConfig(1e4), [])
    old = {"rope_theta": 1e6, "rope_scaling": scaling}
    assert read(old)[0] == read(hf)[0]
    assert read(old, layers=SLIDING, theta=1e4) == (RopeConfig(1e4), [])


def test_a_family_may_have_other_names_of_kinds():
    hf = {"rope_scaling": {"type": "stretched", "factor": 2.0}}
    assert read(hf, aliases={"stretched": "linear"}) == (RopeConfig(kind="linear", factor=2.0), [])


def test_an_attention_factor_must_be_above_0():
    hf = {"rope_scaling": {"type": "yarn", "factor": 4, "attention_factor": -1}}
    assert read(hf)[1] == ["attention_factor must be above 0 and finite, but is -1.0"]


YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("family", "max_len", "scaling", "expected"),
    [
        ("qwen3", 64, YARN | {"original_max_position_embeddings": 64}, 256),
        ("qwen2", 64, {"type": "yarn", "factor": 4.0}, 256),
        ("qwen3", 256, YARN | {"original_max_position_embeddings": 64}, 256),
        ("qwen3", 300, YARN | {"original_max_position_embeddings": 64}, 300),
        ("llama", 64, {"type": "linear", "factor": 2.5}, 160),
        ("llama", 64, {"type": "linear", "factor": 0.5}, 64),
        ("llama", 64, {"rope_type": "linear", "factor": 1e300}, MAX_SIZE),
        ("llama", 64, LLAMA3["rope_scaling"], 64),
        ("gemma3", 64, {"rope_type": "linear", "factor": 8.0}, 64),
    ],
)
def test_linear_and_yarn_scaling_extend_the_context(family, max_len, scaling, expected):
    hf = {**FAMILIES[family].tiny, "max_position_embeddings": max_len, "rope_scaling": scaling}
    assert read_config(hf).max_model_len == expected


def test_a_window_shorter_than_the_extended_context_is_kept():
    hf = {**FAMILIES["mistral"].tiny, "max_position_embeddings": 64, "sliding_window": 64}
    assert not read_config(hf).windows
    assert set(read_config(hf | {"rope_scaling": YARN}).windows) == {64}
