"""Tensors of a .gguf file are read as those of a Hugging Face checkpoint."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from kvflow_jax.models.loading.gguf import TENSOR_TYPES, GgufFile  # noqa: E402 (needs gguf)
from kvflow_jax.models.loading.gguf_tensors import GgufTensors  # noqa: E402
from kvflow_jax.models.loading.hf_config import read_config  # noqa: E402
from kvflow_jax.models.loading.weights import NamedWeights  # noqa: E402
from kvflow_jax.models.model import Model  # noqa: E402
from tests.models import tiny, tiny_gguf  # noqa: E402
from tests.models.sources import read_all  # noqa: E402

LLAMA = read_config(tiny.CONFIGS["tied-gqa"])


def weights_of(file):
    model = Model.build(file.config())
    return read_all(model, NamedWeights(model, file.tensors(model.config)))


def quantised(array: np.ndarray, tensor_type) -> np.ndarray:
    """Return a matrix's bytes; for types that gguf only reads, random ones with small scales."""
    try:
        return gguf.quants.quantize(array, tensor_type)
    except NotImplementedError:
        block, num_bytes = gguf.GGML_QUANT_SIZES[tensor_type]
        rng = np.random.default_rng(array.size)
        shape = (*array.shape[:-1], array.shape[-1] // block, num_bytes)
        data = rng.integers(0, 256, shape).astype(np.uint8)
        scale = np.array([2e-4], np.float16).view(np.uint8)
        if tensor_type.name == "Q6_K":
            data[..., -2:] = scale
        else:
            data[..., :2], data[..., 2:4] = scale, scale
        return data.reshape(*array.shape[:-1], -1)


@pytest.mark.parametrize("name", TENSOR_TYPES)
def test_every_supported_type_is_dequantised_as_gguf_does(name, tmp_path):
    tensor_type = gguf.GGMLQuantizationType[name]
    tensors = {
        key: (quantised(tensor, tensor_type), tensor_type) if tensor.ndim == 2 else tensor
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
        assert weight.std() > 0.01


def test_experts_are_dequantised_one_by_one(tmp_path):
    hf = tiny.CONFIGS["qwen3-moe"] | {"hidden_size": 64, "moe_intermediate_size": 32}
    tensors = tiny_gguf.tensors_of(hf)
    tensor_type = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in tensors.items():
        if "_exps" in name:
            tensors[name] = (gguf.quants.quantize(tensor, tensor_type), tensor_type)
    file = GgufFile(tiny_gguf.write(tmp_path / "model.gguf", hf, tensors=tensors))
    down = weights_of(file)["layers.mlp.down_proj.weight"][1]
    expected = gguf.quants.dequantize(*tensors["blk.1.ffn_down_exps.weight"])
    np.testing.assert_array_equal(down.swapaxes(1, 2), expected)


def in_memory(name: str, data: np.ndarray):
    """Return a float32 tensor as gguf's reader does: its shape begins with the innermost axis."""
    kind = gguf.GGMLQuantizationType.F32
    return SimpleNamespace(
        name=name, data=data.astype(np.float32), shape=np.array(data.shape[::-1]), tensor_type=kind
    )


def test_rows_of_llamas_query_are_brought_into_hugging_faces_order():
    """GGUF interleaves the rows of a RoPE pair; Hugging Face keeps them half a head apart."""
    config, width = LLAMA, LLAMA.hidden_size
    num_rows, half = config.num_heads * config.head_dim, config.head_dim // 2
    stored = np.arange(num_rows)[:, None] * np.ones((1, width))
    tensors = GgufTensors(Path("m"), [in_memory("blk.1.attn_q.weight", stored)], "llama", config)
    ((key, shape, dtype),) = tensors.headers
    assert key == "model.layers.1.self_attn.q_proj.weight"
    assert (shape, dtype) == ((num_rows, width), "float32")
    rows = tensors.read(key, (slice(0, config.head_dim), slice(0, 1)))[:, 0]
    np.testing.assert_array_equal(rows[:half], np.arange(0, config.head_dim, 2))
    np.testing.assert_array_equal(rows[half:], np.arange(1, config.head_dim, 2))


def test_rope_factors_are_no_weights():
    factors = in_memory("rope_freqs.weight", np.ones(8))
    norm = in_memory("output_norm.bias", np.ones(8))
    headers = GgufTensors(Path("m"), [factors, norm], "llama", LLAMA).headers
    assert headers == [("model.norm.bias", (8,), "float32")]


def test_an_unknown_tensor_keeps_its_name():
    tensors = [in_memory("blk.0.attn_sinks.weight", np.ones(4))]
    headers = GgufTensors(Path("m"), tensors, "qwen3", LLAMA).headers
    assert headers == [("model.layers.0.attn_sinks.weight", (4,), "float32")]
