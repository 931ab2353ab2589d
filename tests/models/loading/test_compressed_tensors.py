"""Weights in int8 of compressed-tensors folders equal those of their floats."""

import numpy as np
import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.families import FAMILIES
from kvflow_jax.models.loading.compressed_tensors import ScaledTensors
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.load import load_model
from kvflow_jax.models.loading.safetensors_folder import FolderTensors
from kvflow_jax.models.loading.weights import NamedWeights
from kvflow_jax.models.model import Model
from tests.models import tiny
from tests.models.families.cases import CONFIGS
from tests.models.sources import read_all, read_folder

HF = CONFIGS["llama-untied-mha"]
WEIGHTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
W8A8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
    "ignore": ["lm_head"],
}
FIRST = "model.layers.0.self_attn.q_proj"


def quantised(strategy, scale_dtype=np.float32, hf=HF):
    """Return the tensors of a folder as llm-compressor writes them, and their floats."""
    tensors, floats = {}, {}
    for name, weight in tiny.hf_weights(hf).items():
        tensors[name] = floats[name] = weight
        if name.endswith("proj.weight"):
            axis = 1 if strategy == "channel" else None
            largest = np.abs(weight).max(axis, keepdims=strategy == "channel")
            scale = (largest / 127.5).astype(scale_dtype).reshape(-1, *[1] * (axis or 0))
            values = np.rint(weight / scale).clip(-128, 127).astype(np.int8)
            tensors |= {name: values, f"{name}_scale": scale}
            floats[name] = values * scale.astype(np.float32)
    return tensors, floats


@pytest.mark.parametrize(
    ("strategy", "scale_dtype"),
    [("channel", np.float32), ("channel", np.float16), ("tensor", np.float32)],
)
def test_matrices_are_multiplied_by_their_scales(tmp_path, strategy, scale_dtype):
    tensors, floats = quantised(strategy, scale_dtype)
    tensors[f"{FIRST}.input_scale"] = np.ones(1, np.float32)
    model = Model.build(read_config(HF | {"quantization_config": W8A8}))
    files = FolderTensors(tiny.write_folder(tmp_path / "int8", HF, weights=tensors, shards=2))
    weights = read_all(model, NamedWeights(model, ScaledTensors(files)))
    expected = read_folder(model, tiny.write_folder(tmp_path / "floats", HF, weights=floats))
    for name, weight in expected.items():
        np.testing.assert_array_equal(weights[name], weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_reads_its_matrices(tmp_path, family):
    """Fused projections and experts, too."""
    hf, offset = FAMILIES[family].tiny, FAMILIES[family].norm_offset
    tensors, floats = quantised("channel", hf=hf)
    assert any(tensor.dtype == np.int8 for tensor in tensors.values())
    model = Model.build(read_config({**hf, "quantization_config": W8A8}))
    files = FolderTensors(tiny.write_folder(tmp_path / "int8", hf, weights=tensors))
    weights = read_all(model, NamedWeights(model, ScaledTensors(files), norm_offset=offset))
    expected = read_folder(model, tiny.write_folder(tmp_path / "floats", hf, weights=floats))
    for name, weight in expected.items():
        np.testing.assert_array_equal(weights[name], weight)


def test_a_folder_of_these_is_loaded(tmp_path):
    tensors, floats = quantised("channel")
    folder = tiny.write_folder(
        tmp_path / "int8", HF | {"quantization_config": W8A8}, weights=tensors
    )
    logits = tiny.logits_of(folder, dtype="float32")
    expected = tiny.logits_of(tiny.write_folder(tmp_path / "floats", HF, weights=floats))
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_a_scale_that_is_not_finite_is_found(tmp_path):
    tensors, _ = quantised("channel")
    tensors[f"{FIRST}.weight_scale"][3] = np.nan
    folder = tiny.write_folder(tmp_path, HF | {"quantization_config": W8A8}, weights=tensors)
    with pytest.raises(ModelLoadError, match=rf"NaN or infinity(.|\n)*{FIRST}.weight"):
        load_model(str(folder), quantize="int8", progress=False)


def test_missing_and_misshapen_scales_are_named(tmp_path):
    tensors, _ = quantised("channel")
    del tensors[f"{FIRST}.weight_scale"]
    other = "model.layers.1.mlp.up_proj.weight_scale"
    tensors[other] = np.ones((tensors[other].shape[0], 2), np.float32)
    folder = tiny.write_folder(tmp_path, HF, weights=tensors)
    with pytest.raises(ModelLoadError) as caught:
        NamedWeights(Model.build(read_config(HF)), ScaledTensors(FolderTensors(folder)))
    assert str(caught.value).split("\n- ")[1:] == [
        f"{other}: expected one scale for each row, found shape [96, 2]",
        f"{FIRST}.weight: expected float32, bfloat16 or float16, found I8",
    ]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"quant_method": "gptq", "format": None}, "gptq"),
        ({"format": "pack-quantized"}, "compressed-tensors, pack-quantized"),
        ({"transform_config": {"config_groups": {"R4": {}}}}, "compressed-tensors, int-quantized"),
        (
            {"config_groups": {"a": {"weights": {**WEIGHTS, "strategy": "group"}}}},
            "compressed-tensors, int-quantized",
        ),
        (
            {"config_groups": {"a": {"weights": {**WEIGHTS, "symmetric": False}}}},
            "compressed-tensors, int-quantized",
        ),
    ],
)
def test_other_quantised_weights_are_refused_in_a_line(change, kind):
    message = rf"\n- quantized weights \({kind}\) are not supported; use .*\.gguf.*int8.*$"
    with pytest.raises(ModelLoadError, match=message):
        read_config(HF | {"quantization_config": W8A8 | change})
