"""The scaling of RoPE in a .gguf file, in each form that converters have written."""

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from kvflow_jax.models.families.hf_fields import HfFields  # noqa: E402 (gguf may be missing)
from kvflow_jax.models.loading.gguf_header import GgufTensor  # noqa: E402
from kvflow_jax.models.loading.gguf_rope import rope_scaling  # noqa: E402


def scaling(tensors=(), **fields):
    named = {f"rope.scaling.{name}": value for name, value in fields.items()}
    return rope_scaling(HfFields(named), dict(tensors))


def factors(*values, kind="F32"):
    data = np.array(values, np.float32)
    return GgufTensor(gguf.GGMLQuantizationType[kind], data.shape, data)


def test_no_scaling_is_none():
    assert scaling() is scaling(type="none", factor=2.0) is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"yarn_attn_factor": 0.5, "yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0},
         {"attention_factor": 0.5, "beta_fast": 16.0, "beta_slow": 2.0}),
        ({"yarn_log_multiplier": 1.0, "yarn_ext_factor": 1.0}, {"mscale_all_dim": 1.0}),
    ],
)  # fmt: skip
def test_yarn_has_its_own_settings(fields, expected):
    expected = {"rope_type": "yarn", "factor": 4.0, "mscale": 1.0} | expected
    assert scaling(type="yarn", factor=4.0, **fields) == expected


def test_yarn_without_extrapolation_is_refused():
    with pytest.raises(ValueError, match="yarn_ext_factor 0 is not supported"):
        scaling(type="yarn", factor=4.0, yarn_ext_factor=0.0)


def test_linear_scaling_has_two_names():
    expected = {"rope_type": "linear", "factor": 8.0}
    assert scaling(type="linear", factor=8.0) == expected
    assert rope_scaling(HfFields({"rope.scale_linear": 8.0}), {}) == expected


def test_factors_come_from_tensors():
    llama3 = scaling({"rope_freqs.weight": factors(1, 2)})
    assert llama3["long_factor"] == llama3["short_factor"] == [1.0, 2.0]
    assert llama3["attention_factor"] == 1.0
    both = {f"rope_factors_{name}.weight": factors(i) for i, name in enumerate(("short", "long"))}
    long = scaling(both, attn_factor=1.5)
    assert (long["long_factor"], long["short_factor"]) == ([1.0], [0.0])
    assert long["attention_factor"] == 1.5


@pytest.mark.parametrize("tensor", [factors(1, kind="F16"), factors(*[1] * 5000)])
def test_misshapen_factors_are_refused(tensor):
    with pytest.raises(ValueError, match=r"tensor rope_freqs.weight must be a vector of F32"):
        scaling({"rope_freqs.weight": tensor})
