"""Torn and badly converted checkpoints are refused by the names of their tensors."""

import ml_dtypes
import numpy as np
import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading import nan_check
from kvflow_jax.models.loading.load import load_model
from kvflow_jax.models.ops import XLA
from tests.models import tiny

LAYER = "model.layers.1"


def problems(tmp_path, name, changes, **how):
    """What a folder is refused for whose tensors hold something else at their ends."""
    hf = tiny.CONFIGS[name]
    weights = tiny.hf_weights(hf)
    for tensor, value in changes.items():
        weights[tensor].flat[-1] = value
    folder = tiny.write_folder(tmp_path / "model", hf, weights=weights)
    with pytest.raises(ModelLoadError) as caught:
        load_model(str(folder), progress=False, **how)
    first, *others = str(caught.value).split("\n- ")
    assert first == (
        f"the weights of {folder} hold NaN or infinity; download or convert them again:"
    )
    return sorted(others)


@pytest.fixture(params=["host", "device"])
def look(request, monkeypatch):
    """Both ways of looking, whatever the device."""
    if request.param == "device":
        monkeypatch.setattr(nan_check, "_on_host", nan_check._on_device)
    else:
        monkeypatch.setattr(nan_check, "_on_device", nan_check._on_host)


@pytest.mark.parametrize("how", [{}, {"ops": XLA}, {"dtype": "bfloat16"}])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_number_in_any_tensor(tmp_path, look, value, how):
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
    assert problems(tmp_path, "untied-mha", changes, **how) == sorted(expected)


@pytest.mark.parametrize("how", [{}, {"ops": XLA}])
def test_experts(tmp_path, look, how):
    experts = f"{LAYER}.mlp.experts"
    changes = {f"{experts}.3.down_proj.weight": np.nan, f"{LAYER}.mlp.gate.weight": np.inf}
    expected = [f"{experts}.*.down_proj.weight", f"{LAYER}.mlp.gate.weight"]
    assert problems(tmp_path, "qwen3-moe", changes, **how) == expected


def test_biases(tmp_path):
    changes = {f"{LAYER}.mlp.gate_proj.bias": np.nan}
    fused = f"{LAYER}.mlp.gate_proj.bias or {LAYER}.mlp.up_proj.bias"
    assert problems(tmp_path, "linear-rope-biased", changes) == [fused]


@pytest.mark.parametrize("dtype", ["float32", "float16", ml_dtypes.bfloat16])
def test_every_finite_number_is(dtype):
    """All those of 16 bits; of 32 those at the ends."""
    if dtype == "float32":
        limits = np.finfo(dtype)
        numbers = np.array([0, -0.0, limits.tiny, -limits.tiny, limits.max, limits.min], dtype)
    else:
        every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
        with np.errstate(invalid="ignore"):
            is_finite = np.isfinite(every)
        numbers = every[is_finite]
        assert not any(nan_check._is_finite(one[None]) for one in every[~is_finite])
    assert nan_check._is_finite(numbers)
    assert not nan_check._is_finite(np.append(numbers, numbers.dtype.type(np.nan)))
