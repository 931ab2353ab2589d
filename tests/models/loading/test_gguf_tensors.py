"""Tensors of a .gguf file are read as those of a Hugging Face checkpoint."""

from pathlib import Path

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from kvflow_jax.errors import ModelLoadError  # noqa: E402 (needs gguf)
from kvflow_jax.models.families import FAMILIES  # noqa: E402
from kvflow_jax.models.loading.gguf import TENSOR_TYPES, GgufFile  # noqa: E402 (needs gguf)
from kvflow_jax.models.loading.gguf_header import GgufTensor  # noqa: E402
from kvflow_jax.models.loading.gguf_tensors import (  # noqa: E402
    GgufTensors,
    gguf_name,
    name_map,
)
from kvflow_jax.models.loading.hf_config import read_config  # noqa: E402
from kvflow_jax.models.loading.weights import NamedWeights  # noqa: E402
from kvflow_jax.models.model import Model  # noqa: E402
from tests.models import tiny_gguf  # noqa: E402
from tests.models.sources import read_all  # noqa: E402

LLAMA = Model.build(read_config(FAMILIES["llama"].tiny))


def weights_of(file):
    model = Model.build(file.config())
    return read_all(model, NamedWeights(model, file.tensors(model)))


@pytest.mark.parametrize("name", TENSOR_TYPES)
def test_every_supported_type_is_dequantised_as_gguf_does(name, tmp_path):
    tensor_type = gguf.GGMLQuantizationType[name]
    tensors = {
        key: (tiny_gguf.quantised(tensor, tensor_type), tensor_type) if tensor.ndim == 2 else tensor
        for key, tensor in tiny_gguf.tensors_of(tiny_gguf.WIDE).items()
    }
    file = GgufFile(tiny_gguf.write(tmp_path / "model.gguf", tiny_gguf.WIDE, tensors=tensors))
    stacked = weights_of(file)
    for weight, key in (
        (stacked["embed.weight"], "token_embd.weight"),
        (stacked["lm_head.weight"], "output.weight"),
        (stacked["layers.mlp.down_proj.weight"][0].T, "blk.0.ffn_down.weight"),
        (stacked["layers.attention.o_proj.weight"][0].T, "blk.0.attn_output.weight"),
    ):
        np.testing.assert_array_equal(weight, gguf.quants.dequantize(*tensors[key]))
        assert np.isfinite(weight).all()
        assert weight.std() > 1e-4


def test_experts_are_dequantised_one_by_one(tmp_path):
    hf = {**FAMILIES["qwen3-moe"].tiny, "hidden_size": 64, "moe_intermediate_size": 32}
    tensors = tiny_gguf.tensors_of(hf)
    tensor_type = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in tensors.items():
        if "_exps" in name:
            tensors[name] = (gguf.quants.quantize(tensor, tensor_type), tensor_type)
    file = GgufFile(tiny_gguf.write(tmp_path / "model.gguf", hf, tensors=tensors))
    down = weights_of(file)["layers.mlp.down_proj.weight"][1]
    expected = gguf.quants.dequantize(*tensors["blk.1.ffn_down_exps.weight"])
    np.testing.assert_array_equal(down.swapaxes(1, 2), expected)


def test_gate_and_up_projections_of_experts_may_be_one_tensor(tmp_path):
    """As ``convert_hf_to_gguf.py --fuse-gate-up-exps`` writes them."""
    hf = FAMILIES["qwen3-moe"].tiny
    tensors = tiny_gguf.tensors_of(hf)
    expected = weights_of(GgufFile(tiny_gguf.write(tmp_path / "two.gguf", hf, tensors=tensors)))
    for layer in range(hf["num_hidden_layers"]):
        parts = [tensors.pop(f"blk.{layer}.ffn_{part}_exps.weight") for part in ("gate", "up")]
        tensors[f"blk.{layer}.ffn_gate_up_exps.weight"] = np.concatenate(parts, axis=1)
    weights = weights_of(GgufFile(tiny_gguf.write(tmp_path / "one.gguf", hf, tensors=tensors)))
    for name, weight in expected.items():
        np.testing.assert_array_equal(weights[name], weight)


@pytest.mark.parametrize("num_experts", [4, 9])
def test_another_number_of_experts_is_reported(tmp_path, num_experts):
    hf = FAMILIES["qwen3-moe"].tiny
    fields = {"qwen3moe.expert_count": num_experts}
    tensors = tiny_gguf.tensors_of(hf)
    for layer in range(hf["num_hidden_layers"]):
        router = tensors[f"blk.{layer}.ffn_gate_inp.weight"]
        tensors[f"blk.{layer}.ffn_gate_inp.weight"] = np.resize(router, (num_experts, 64))
    path = tiny_gguf.write(tmp_path / "model.gguf", hf, tensors=tensors, fields=fields)
    with pytest.raises(ModelLoadError, match=rf"expected {num_experts} matrices, found the shape"):
        weights_of(GgufFile(path))


def in_memory(**tensors: np.ndarray):
    """Return float32 tensors as of a file: their shapes begin with the innermost axis."""
    kind = gguf.GGMLQuantizationType.F32
    views = {
        name: GgufTensor(kind, data.shape[::-1], data.astype(np.float32))
        for name, data in tensors.items()
    }
    return GgufTensors(Path("m"), views, FAMILIES["llama"].gguf, LLAMA)


def test_rows_of_llamas_query_are_brought_into_hugging_faces_order():
    """GGUF interleaves the rows of a RoPE pair; Hugging Face keeps them half a head apart."""
    config, width = LLAMA.config, LLAMA.config.hidden_size
    num_rows, half = config.num_heads * config.head_dim, config.head_dim // 2
    stored = np.arange(num_rows)[:, None] * np.ones((1, width))
    tensors = in_memory(**{"blk.1.attn_q.weight": stored})
    ((key, shape, dtype),) = tensors.headers
    assert key == "model.layers.1.self_attn.q_proj.weight"
    assert (shape, dtype) == ((num_rows, width), "float32")
    rows = tensors.read(key, (slice(0, config.head_dim), slice(0, 1)))[:, 0]
    np.testing.assert_array_equal(rows[:half], np.arange(0, config.head_dim, 2))
    np.testing.assert_array_equal(rows[half:], np.arange(1, config.head_dim, 2))


def test_rope_factors_are_no_weights():
    tensors = {"rope_freqs.weight": np.ones(8), "output_norm.weight": np.ones(64)}
    assert in_memory(**tensors).headers == [("model.norm.weight", (64,), "float32")]


def test_a_tensor_that_the_model_does_not_need_keeps_its_name():
    tensors = {"blk.0.attn_sinks.weight": np.ones(4), "output_norm.bias": np.ones(8)}
    headers = in_memory(**tensors).headers
    assert headers == [(name, data.shape, "float32") for name, data in tensors.items()]


def test_an_architecture_that_the_package_does_not_know_is_named():
    with pytest.raises(ModelLoadError, match=r"does not know architecture 'new'; upgrade it"):
        name_map("new", 1)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("lm_head.weight", ("output.weight", None)),
        ("model.layers.1.self_attn.k_norm.weight", ("blk.1.attn_k_norm.weight", None)),
        ("model.layers.1.mlp.experts.7.up_proj.weight", ("blk.1.ffn_up_exps.weight", 7)),
        ("model.layers.0.unknown.weight", ("", None)),
    ],
)
def test_tensors_have_llama_cpps_names(key, expected):
    assert gguf_name(name_map("qwen3moe", 2), key) == expected
