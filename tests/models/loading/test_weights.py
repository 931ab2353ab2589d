import ml_dtypes
import numpy as np
import pytest

from kvflow_jax.models.families import FAMILIES
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.safetensors_folder import FolderTensors
from kvflow_jax.models.model import Model
from tests.models import tiny
from tests.models.sources import read_folder, read_problems

HF = FAMILIES["llama"].tiny
WEIGHTS = tiny.hf_weights(HF)
MODEL = Model.build(read_config(HF))


@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_are_transposed_fused_and_stacked(tmp_path, shards):
    stacked = read_folder(MODEL, tiny.write_folder(tmp_path / "m", shards=shards))
    assert {name: (w.shape, w.dtype) for name, w in stacked.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in MODEL.stacked_specs.items()
    }
    for layer in range(3):
        prefix = f"model.layers.{layer}."
        qkv = [WEIGHTS[f"{prefix}self_attn.{part}_proj.weight"] for part in "qkv"]
        np.testing.assert_array_equal(
            stacked["layers.attention.qkv_proj.weight"][layer].T, np.concatenate(qkv)
        )
        gate_up = [WEIGHTS[f"{prefix}mlp.{part}_proj.weight"] for part in ("gate", "up")]
        np.testing.assert_array_equal(
            stacked["layers.mlp.gate_up_proj.weight"][layer].T, np.concatenate(gate_up)
        )
    np.testing.assert_array_equal(stacked["embed.weight"], WEIGHTS["model.embed_tokens.weight"])


@pytest.mark.parametrize("source", [np.float16, ml_dtypes.bfloat16, np.float32], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_cast_to_the_models_dtype(tmp_path, source, dtype):
    weights = {name: tensor.astype(source) for name, tensor in WEIGHTS.items()}
    model = Model.build(MODEL.config, dtype)
    stacked = read_folder(model, tiny.write_folder(tmp_path / "m", weights=weights))
    norm = stacked["final_norm.weight"]
    assert norm.dtype == dtype
    np.testing.assert_array_equal(norm, weights["model.norm.weight"].astype(norm.dtype))


def test_every_problem_is_listed_at_once_with_what_to_do(tmp_path):
    weights = dict(WEIGHTS)
    del weights["model.norm.weight"], weights["model.layers.2.mlp.up_proj.weight"]
    weights["model.layers.0.self_attn.k_proj.weight"] = np.zeros((16, 64), np.float32)
    weights["model.layers.0.self_attn.q_norm.weight"] = np.zeros(16, np.float32)
    weights["model.layers.1.input_layernorm.weight"] = np.zeros(64, np.int8)
    message = read_problems(tiny.write_folder(tmp_path / "m", weights=weights), MODEL)
    for part in (
        "download the model again, or check that its config belongs to these files",
        "missing tensor model.norm.weight",
        "missing tensor model.layers.2.mlp.up_proj.weight",
        "model.layers.0.self_attn.k_proj.weight: expected shape [32, 64], found [16, 64]",
        "unexpected tensor model.layers.0.self_attn.q_norm.weight [16]",
        "model.layers.1.input_layernorm.weight: expected float32, bfloat16 or float16, found I8",
    ):
        assert part in message


def test_a_wrong_folder_is_rejected_before_a_tensor_is_read(tmp_path, monkeypatch):
    folder = tiny.write_folder(tmp_path / "m", weights=WEIGHTS | {"extra": np.zeros(1, np.float32)})
    monkeypatch.setattr(FolderTensors, "read", pytest.fail)
    assert "unexpected tensor extra [1]" in read_problems(folder, MODEL)


def test_needless_tensors_are_ignored(tmp_path):
    extra = {
        "lm_head.weight": WEIGHTS["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32),
    }
    read_folder(MODEL, tiny.write_folder(tmp_path / "m", weights=WEIGHTS | extra))


def test_a_tied_output_projection_that_differs_from_the_embedding_is_rejected(tmp_path):
    extra = {"lm_head.weight": WEIGHTS["model.embed_tokens.weight"] + np.float32(1)}
    message = read_problems(tiny.write_folder(tmp_path / "m", weights=WEIGHTS | extra), MODEL)
    assert "tie_word_embeddings to false" in message


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"lm_head.weight": np.int8}, "expected float32, bfloat16 or float16, found I8"),
        (
            {"lm_head.weight": np.float32, "language_model.lm_head.weight": np.float32},
            "duplicate tensor lm_head.weight",
        ),
    ],
)
def test_unreadable_tied_output_projections_are_rejected(tmp_path, extra, reason):
    embedding = WEIGHTS["model.embed_tokens.weight"]
    heads = {name: embedding.astype(dtype) for name, dtype in extra.items()}
    assert reason in read_problems(
        tiny.write_folder(tmp_path / "m", weights=WEIGHTS | heads), MODEL
    )


def test_overflow_of_float16_is_reported(tmp_path):
    weights = WEIGHTS | {"model.norm.weight": np.full(64, 1e6, np.float32)}
    folder = tiny.write_folder(tmp_path / "m", weights=weights)
    message = read_problems(folder, Model.build(MODEL.config, "float16"))
    assert "model.norm.weight: too large for float16" in message
