import json
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.safetensors_folder import FolderTensors
from kvflow_jax.models.model import Model
from tests.models import tiny
from tests.models.sources import folder_weights, read_all, read_folder

HF = tiny.CONFIGS["tied-gqa"]
WEIGHTS = tiny.hf_weights(HF)
MODEL = Model.build(read_config(HF))


def read_problems(folder, model=MODEL):
    with pytest.raises(ModelLoadError) as caught:
        read_folder(model, folder)
    return str(caught.value)


@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_land_in_their_place(tmp_path, shards):
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
def test_dtypes(tmp_path, source, dtype):
    weights = {name: tensor.astype(source) for name, tensor in WEIGHTS.items()}
    model = Model.build(MODEL.config, dtype)
    stacked = read_folder(model, tiny.write_folder(tmp_path / "m", weights=weights))
    norm = stacked["final_norm.weight"]
    assert norm.dtype == dtype
    np.testing.assert_array_equal(norm, weights["model.norm.weight"].astype(norm.dtype))


def test_every_problem_is_listed_at_once(tmp_path):
    weights = dict(WEIGHTS)
    del weights["model.norm.weight"], weights["model.layers.2.mlp.up_proj.weight"]
    weights["model.layers.0.self_attn.k_proj.weight"] = np.zeros((16, 64), np.float32)
    weights["model.layers.0.self_attn.q_norm.weight"] = np.zeros(16, np.float32)
    weights["model.layers.1.input_layernorm.weight"] = np.zeros(64, np.int8)
    message = read_problems(tiny.write_folder(tmp_path / "m", weights=weights))
    for part in (
        "missing tensor model.norm.weight",
        "missing tensor model.layers.2.mlp.up_proj.weight",
        "model.layers.0.self_attn.k_proj.weight: expected shape [32, 64], found [16, 64]",
        "unexpected tensor model.layers.0.self_attn.q_norm.weight [16]",
        "model.layers.1.input_layernorm.weight: expected float32, bfloat16 or float16, found I8",
    ):
        assert part in message


def test_a_folder_is_refused_before_a_weight_is_read(tmp_path, monkeypatch):
    folder = tiny.write_folder(tmp_path / "m", weights=WEIGHTS | {"extra": np.zeros(1, np.float32)})
    monkeypatch.setattr(FolderTensors, "read", pytest.fail)
    assert "unexpected tensor extra [1]" in read_problems(folder)


def test_what_files_carry_needlessly_is_ignored(tmp_path):
    extra = {
        "lm_head.weight": WEIGHTS["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8, np.float32),
    }
    read_folder(MODEL, tiny.write_folder(tmp_path / "m", weights=WEIGHTS | extra))


def test_an_output_projection_that_is_not_what_it_is_tied_to(tmp_path):
    extra = {"lm_head.weight": WEIGHTS["model.embed_tokens.weight"] + np.float32(1)}
    message = read_problems(tiny.write_folder(tmp_path / "m", weights=WEIGHTS | extra))
    assert "tie_word_embeddings to false" in message


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ({"lm_head.weight": np.int8}, "expected float32, bfloat16 or float16, found I8"),
        (
            {"lm_head.weight": np.float32, "language_model.lm_head.weight": np.float32},
            "lm_head.weight is there twice",
        ),
    ],
)
def test_tied_output_projections_that_cannot_be_read(tmp_path, extra, why):
    embedding = WEIGHTS["model.embed_tokens.weight"]
    heads = {name: embedding.astype(dtype) for name, dtype in extra.items()}
    assert why in read_problems(tiny.write_folder(tmp_path / "m", weights=WEIGHTS | heads))


def test_an_index_with_a_name_that_cannot_be_a_file(tmp_path):
    folder = tiny.write_folder(tmp_path / "m", shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m" * 5000}}))
    assert "missing shard" in read_problems(folder)


def test_tensors_that_are_there_twice(tmp_path):
    folder = tiny.write_folder(tmp_path / "m", shards=2)
    shutil.copy(
        folder / "model-00001-of-00002.safetensors", folder / "model-00003-of-00002.safetensors"
    )
    index = folder / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    found["weight_map"]["another"] = "model-00003-of-00002.safetensors"
    index.write_text(json.dumps(found))
    assert "is there twice" in read_problems(folder)


def test_one_file_goes_before_an_index(tmp_path):
    folder = tiny.write_folder(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text("stale")
    read_folder(MODEL, folder)


@pytest.mark.parametrize("index", ["[]", "null", '"x"', '{"weight_map": {"a": ["b"]}}'])
def test_an_index_that_is_none(tmp_path, index):
    folder = tiny.write_folder(tmp_path / "m", shards=2)
    (folder / "model.safetensors.index.json").write_text(index)
    assert read_problems(folder)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_language_model_of_a_multimodal_checkpoint(tmp_path, prefix):
    hf = tiny.CONFIGS["gemma3"]
    weights = tiny.hf_weights(hf)
    model = Model.build(read_config(hf))
    expected = read_folder(model, tiny.write_folder(tmp_path / "text", hf))
    renamed = {name.replace("model.", prefix, 1): tensor for name, tensor in weights.items()}
    tower = "model.vision_tower" if prefix.startswith("model.") else "vision_tower"
    renamed[f"{tower}.embeddings.weight"] = np.zeros((3, 3), np.float32)
    stacked = read_folder(model, tiny.write_folder(tmp_path / "m", hf, weights=renamed))
    for name, weight in expected.items():
        np.testing.assert_array_equal(stacked[name], weight)
    np.testing.assert_array_equal(stacked["final_norm.weight"], weights["model.norm.weight"] + 1)


def test_a_missing_expert_is_named(tmp_path):
    hf = tiny.CONFIGS["qwen3-moe"]
    weights = tiny.hf_weights(hf)
    del weights["model.layers.1.mlp.experts.5.up_proj.weight"]
    weights["model.layers.1.mlp.experts.8.up_proj.weight"] = np.zeros((40, 64), np.float32)
    model = Model.build(read_config(hf))
    message = read_problems(tiny.write_folder(tmp_path / "m", hf, weights=weights), model)
    assert "missing tensor model.layers.1.mlp.experts.5.up_proj.weight" in message
    assert "unexpected tensor model.layers.1.mlp.experts.8.up_proj.weight" in message


def test_truncated_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    message = read_problems(folder)
    assert "model.safetensors is truncated or corrupt, download it again" in message


def test_corrupt_header(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    assert "truncated or corrupt" in read_problems(folder)


def test_missing_shard(tmp_path):
    folder = tiny.write_folder(tmp_path / "m", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    message = read_problems(folder)
    assert "missing shard model-00002-of-00003.safetensors" in message
    assert "missing tensor" in message


def test_broken_index(tmp_path):
    folder = tiny.write_folder(tmp_path / "m", shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weights": {}}))
    assert "model.safetensors.index.json cannot be read" in read_problems(folder)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "missing file model.safetensors" in read_problems(folder)


def test_float16_overflow(tmp_path):
    weights = WEIGHTS | {"model.norm.weight": np.full(64, 1e6, np.float32)}
    folder = tiny.write_folder(tmp_path / "m", weights=weights)
    message = read_problems(folder, Model.build(MODEL.config, "float16"))
    assert "model.norm.weight: too large for float16" in message


@pytest.mark.parametrize("name", tiny.CONFIGS)
def test_parts_are_parts_of_the_whole(tmp_path, name):
    hf = tiny.CONFIGS[name]
    model = Model.build(read_config(hf))
    source = folder_weights(model, tiny.write_folder(tmp_path / "m", hf, shards=2))
    whole, rng = read_all(model, source), np.random.default_rng(0)
    for weight, expected in whole.items():
        for _ in range(4):
            bounds = [sorted(rng.choice(size + 1, 2, replace=False)) for size in expected.shape]
            index = tuple(slice(int(start), int(stop)) for start, stop in bounds)
            part = np.empty_like(expected[index])
            source.read(weight, index, part)
            np.testing.assert_array_equal(part, expected[index])


def test_unknown_tensor_file_is_not_read(folder):
    """Where there is no index only model.safetensors counts."""
    save_file({"stray": np.zeros(3, np.float32)}, folder / "consolidated.safetensors")
    read_folder(MODEL, folder)
