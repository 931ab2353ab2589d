"""Weights with NaN or infinity are rejected, and the tensors with them named."""

import ml_dtypes
import numpy as np
import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading import nan_check
from kvflow_jax.models.loading.load import load_model
from kvflow_jax.models.ops import XLA, XlaOps
from tests.models import tiny
from tests.models.families.cases import CONFIGS

LAYER = "model.layers.1"


def problems(tmp_path, name, changes, **load_args):
    """Return the problems found in a folder whose tensors have these last elements."""
    hf = CONFIGS[name]
    weights = tiny.hf_weights(hf)
    for tensor, value in changes.items():
        weights[tensor].flat[-1] = value
    folder = tiny.write_folder(tmp_path / "model", hf, weights=weights)
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(folder), progress=False, **load_args)
    first, *others = str(caught.value).split("\n- ")
    assert first == (
        f"the weights of {folder} contain NaN or infinity; download or convert them again:"
    )
    return sorted(others)


@pytest.fixture(params=["host", "device"])
def check(request, monkeypatch):
    """Run both implementations, whatever the device."""
    if request.param == "device":
        monkeypatch.setattr(nan_check, "_on_host", nan_check._on_device)
    else:
        monkeypatch.setattr(nan_check, "_on_device", nan_check._on_host)


@pytest.mark.parametrize("load_args", [{"dtype": "float32"}, {"ops": XLA}, {"dtype": "bfloat16"}])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_single_bad_number_in_any_tensor_is_found(tmp_path, check, value, load_args):
    changes = {
        "model.norm.weight": value,
        "model.embed_tokens.weight": value,
        "lm_head.weight": value,
        f"{LAYER}.input_layernorm.weight": value,
        f"{LAYER}.mlp.down_proj.weight": value,
        f"{LAYER}.self_attn.v_proj.weight": value,
    }
    fused = " or ".join(f"{LAYER}.self_attn.{part}_proj.weight" for part in "qkv")
    expected = {*changes, fused} - {f"{LAYER}.self_attn.v_proj.weight"}
    assert problems(tmp_path, "llama-untied-mha", changes, **load_args) == sorted(expected)


@pytest.mark.parametrize("platform", ["tpu", "cpu"])
def test_weights_in_8_bits_have_bad_numbers_in_their_scales(tmp_path, check, platform):
    changes = {"lm_head.weight": np.inf, f"{LAYER}.mlp.down_proj.weight": np.nan}
    ops = XlaOps(platform=platform, quantize="int8")
    assert problems(tmp_path, "llama-untied-mha", changes, ops=ops) == sorted(changes)


@pytest.mark.parametrize("load_args", [{"dtype": "float32"}, {"ops": XLA}])
def test_experts_are_checked(tmp_path, check, load_args):
    experts = f"{LAYER}.mlp.experts"
    changes = {f"{experts}.3.down_proj.weight": np.nan, f"{LAYER}.mlp.gate.weight": np.inf}
    expected = [f"{experts}.*.down_proj.weight", f"{LAYER}.mlp.gate.weight"]
    assert problems(tmp_path, "qwen3-moe", changes, **load_args) == expected


def test_biases_are_checked(tmp_path):
    changes = {f"{LAYER}.mlp.gate_proj.bias": np.nan}
    fused = f"{LAYER}.mlp.gate_proj.bias or {LAYER}.mlp.up_proj.bias"
    assert problems(tmp_path, "llama-linear-rope-biased", changes, dtype="float32") == [fused]


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16])
def test_finite_numbers_pass_and_all_others_do_not(dtype):
    """All numbers of 16 bits; the extremes of 32 bits."""
    if dtype == "float32":
        limits = np.finfo(dtype)
        numbers = np.array([0, -0.0, limits.tiny, -limits.tiny, limits.max, limits.min], dtype)
    else:
        every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
        with np.errstate(invalid="ignore"):
            is_finite = np.isfinite(every)
        numbers = every[is_finite]
        assert not any(nan_check._is_finite(number[None]) for number in every[~is_finite])
    assert nan_check._is_finite(numbers)
    assert not nan_check._is_finite(np.append(numbers, numbers.dtype.type(np.nan)))
