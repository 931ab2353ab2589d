"""Files of a Hugging Face folder that are missing or damaged are named, with what to do."""

import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading import safetensors_folder
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.loading.safetensors_folder import FolderTensors
from kvflow_jax.models.model import Model
from tests.models import tiny
from tests.models.families.cases import CONFIGS
from tests.models.sources import read_folder

MODEL = Model.build(read_config(CONFIGS["llama"]))
WEIGHTS = tiny.hf_weights(CONFIGS["llama"])


def read_problems(folder):
    with pytest.raises(ModelLoadError) as caught:
        read_folder(MODEL, folder)
    return str(caught.value)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_slice_of_a_tensor_is_read(tmp_path, shards):
    tensors = FolderTensors(tiny.write_folder(tmp_path / "m", shards=shards))
    assert {name for name, _, _ in tensors.headers} == WEIGHTS.keys()
    key = "model.layers.1.mlp.up_proj.weight"
    index = slice(3, 9), slice(10, 50)
    np.testing.assert_array_equal(tensors.read(key, index), WEIGHTS[key][index])


def test_a_file_is_reopened_so_that_what_was_read_can_leave_memory(folder, monkeypatch):
    opened = []

    def safe_open(path, framework, original=safetensors_folder.safe_open):
        opened.append(path.name)
        return original(path, framework=framework)

    monkeypatch.setattr(safetensors_folder, "safe_open", safe_open)
    monkeypatch.setattr(safetensors_folder, "REOPEN_BYTES", 1000)
    tensors = FolderTensors(folder)
    opened.clear()
    for _ in range(3):
        tensors.read("model.norm.weight", (slice(0, 64),))  # 256 bytes
    assert len(opened) == 1
    tensors.read("model.embed_tokens.weight", (slice(0, 300), slice(0, 64)))
    tensors.read("model.norm.weight", (slice(0, 64),))
    assert len(opened) == 2


def test_a_file_that_is_truncated_after_it_was_opened_is_named(folder):
    tensors = FolderTensors(folder)
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelLoadError, match=r"model\.safetensors is truncated or corrupt"):
        tensors.read("model.norm.weight", (slice(0, 64),))


def test_an_index_may_not_name_a_file_that_cannot_exist(tmp_path):
    folder = tiny.write_folder(tmp_path / "m", shards=2)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m" * 5000}}))
    assert "missing shard" in read_problems(folder)


def test_a_tensor_in_two_files_is_reported(tmp_path):
    folder = tiny.write_folder(tmp_path / "m", shards=2)
    shutil.copy(
        folder / "model-00001-of-00002.safetensors", folder / "model-00003-of-00002.safetensors"
    )
    index = folder / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    found["weight_map"]["another"] = "model-00003-of-00002.safetensors"
    index.write_text(json.dumps(found))
    assert "duplicate tensor" in read_problems(folder)


def test_a_single_file_takes_precedence_over_an_index(tmp_path):
    folder = tiny.write_folder(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text("stale")
    read_folder(MODEL, folder)


@pytest.mark.parametrize(
    ("index", "problem"),
    [
        ("[]", "model.safetensors.index.json cannot be read, download it again"),
        ("null", "model.safetensors.index.json cannot be read, download it again"),
        ('"x"', "model.safetensors.index.json cannot be read, download it again"),
        ('{"weight_map": {"a": ["b"]}}', "missing shard ['b']; download it again"),
    ],
)
def test_an_index_of_the_wrong_form_is_reported(tmp_path, index, problem):
    folder = tiny.write_folder(tmp_path / "m", shards=2)
    (folder / "model.safetensors.index.json").write_text(index)
    assert problem in read_problems(folder)


def test_a_truncated_file_is_named(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    message = read_problems(folder)
    assert "model.safetensors is truncated or corrupt, download it again" in message


def test_a_corrupt_header_is_reported(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    assert "truncated or corrupt" in read_problems(folder)


def safetensors(header, num_bytes=0, header_bytes=None):
    """Return a safetensors file with this header, by its bytes or a JSON value."""
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(data) if header_bytes is None else header_bytes
    return length.to_bytes(8, "little") + data + bytes(num_bytes)


def f32(shape, *offsets):
    return {"model.norm.weight": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        safetensors(b"", header_bytes=2**64 - 1),
        safetensors(b"", header_bytes=2**63),
        safetensors(b"", header_bytes=99_000_000),
        safetensors(b"[" * 100_000),
        safetensors(f32([2**32, 2**32], 0, 0)),
        safetensors(f32([2**62], 0, 0)),
        safetensors(f32([4], 0, 2**63), 16),
        safetensors(f32([4], 16, 0), 16),
        safetensors(f32([4], -16, 0), 16),
        safetensors(f32([4], 0, 16), 15),
        safetensors(f32([4], 4, 20), 20),
        safetensors(f32([1e9], 0, 16), 16),
        safetensors(f32("x", 0, 16), 16),
        safetensors({"model.norm.weight": 7}),
        safetensors({"a": f32([4], 0, 16)["model.norm.weight"]} | f32([4], 0, 16), 16),
    ],
)
def test_a_header_that_contradicts_its_file_is_reported(folder, data):
    (folder / "model.safetensors").write_bytes(data)
    message = read_problems(folder)
    assert "model.safetensors is truncated or corrupt, download it again" in message


def test_a_header_has_a_limit(folder, monkeypatch):
    monkeypatch.setattr(safetensors_folder, "MAX_HEADER_BYTES", 100)
    assert "its header has" in read_problems(folder)


@pytest.mark.parametrize("name", ["../m2/model.safetensors", "/dev/zero", "a/b.safetensors"])
def test_a_shard_is_a_file_of_the_folder(tmp_path, name):
    tiny.write_folder(tmp_path / "m2")
    folder = tiny.write_folder(tmp_path / "m", shards=2)
    index = json.dumps({"weight_map": {"a": name}})
    (folder / "model.safetensors.index.json").write_text(index)
    assert f"names '{name}', which is no file name" in read_problems(folder)


def test_a_missing_shard_is_named(tmp_path):
    folder = tiny.write_folder(tmp_path / "m", shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    message = read_problems(folder)
    assert "missing shard model-00002-of-00003.safetensors" in message
    assert "missing tensor" in message


def test_an_index_without_a_weight_map_is_named(tmp_path):
    folder = tiny.write_folder(tmp_path / "m", shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weights": {}}))
    assert "model.safetensors.index.json cannot be read" in read_problems(folder)


def test_a_folder_without_weights_is_reported(folder):
    (folder / "model.safetensors").unlink()
    assert "missing file model.safetensors" in read_problems(folder)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("pytorch_model.bin", "pytorch_model.bin is there and is not read: convert it"),
        ("consolidated.safetensors", "consolidated.safetensors is there and is not read"),
        ("adapter_config.json", "adapters are not supported; merge it into its base model"),
    ],
)
def test_weights_of_another_form_are_named_alone(folder, name, part):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(b"{}")
    message = read_problems(folder)
    assert part in message
    assert "missing tensor" not in message


def test_files_of_other_names_are_not_read(folder):
    """Without an index only model.safetensors is read."""
    save_file({"stray": np.zeros(3, np.float32)}, folder / "consolidated.safetensors")
    read_folder(MODEL, folder)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_regular_file_is_not_opened(folder, make):
    (folder / "model.safetensors").unlink()
    make(folder / "model.safetensors")
    assert "model.safetensors is truncated or corrupt" in read_problems(folder)
    assert "it is no regular file" in read_problems(folder)
