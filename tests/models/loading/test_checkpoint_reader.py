"""A checkpoint is read slice by slice, and not used if it differs from what was written."""

import json

import numpy as np
import orbax.checkpoint as ocp
import pytest

from kvflow_jax.models.loading import checkpoint_reader
from kvflow_jax.models.loading.checkpoint_reader import (
    MANIFEST_FILE,
    CheckpointWeights,
    UnusableCheckpointError,
    write_manifest,
    write_weights,
)
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.model import Model
from tests.models.families.cases import CONFIGS
from tests.models.sources import HostWeights, read_all

MODEL = Model.build(read_config(CONFIGS["llama"]))


@pytest.fixture
def source():
    return HostWeights.random(MODEL)


@pytest.fixture
def path(tmp_path, source):
    """A complete checkpoint of ``source``."""
    write_weights(tmp_path, MODEL, source, progress=False)
    write_manifest(tmp_path, MODEL)
    return tmp_path


def test_a_checkpoint_gives_back_the_weights_it_was_written_from(path, source):
    weights = read_all(MODEL, CheckpointWeights(path, MODEL))
    assert weights.keys() == source.arrays.keys()
    for name, weight in source.arrays.items():
        np.testing.assert_array_equal(weights[name], weight)


def test_only_the_chunks_of_a_slice_are_read(tmp_path, source, monkeypatch):
    monkeypatch.setattr(checkpoint_reader, "CHUNK_BYTES", 4096)
    write_weights(tmp_path, MODEL, source, progress=False)
    write_manifest(tmp_path, MODEL)
    name = "layers.mlp.down_proj.weight"  # [3, 96, 64]
    expected = source.arrays[name][1:2, :, 32:]
    read = []
    digest = checkpoint_reader._digest
    monkeypatch.setattr(
        checkpoint_reader, "_digest", lambda file: read.append(file) or digest(file)
    )
    weights = CheckpointWeights(tmp_path, MODEL)
    read.clear()
    out = np.empty_like(expected)
    weights.read(name, (slice(1, 2), slice(0, 96), slice(32, 64)), out)
    np.testing.assert_array_equal(out, expected)
    chunks = [file for file in read if not file.name.startswith(".")]
    assert {file.parent.name for file in chunks} == {"mlp.down_proj.weight"}
    assert sum(file.stat().st_size for file in chunks) == expected.nbytes


def test_orbax_can_read_a_checkpoint(path, source):
    as_numpy = {"mlp_norm.weight": ocp.RestoreArgs(restore_type=np.ndarray)}
    with checkpoint_reader.checkpointer() as orbax:
        layer = orbax.restore(
            path / "weights" / "layers.2",
            args=ocp.args.PyTreeRestore(
                item=dict.fromkeys(as_numpy, 0), restore_args=as_numpy, partial_restore=True
            ),
        )
    expected = source.arrays["layers.mlp_norm.weight"][2]
    np.testing.assert_array_equal(layer["mlp_norm.weight"], expected)


def test_a_checkpoint_without_its_manifest_is_unusable(path):
    (path / MANIFEST_FILE).unlink()
    with pytest.raises(UnusableCheckpointError, match="FileNotFoundError"):
        CheckpointWeights(path, MODEL)


def test_a_missing_file_is_named(path):
    (path / "weights" / "ends" / "embed.weight" / ".zarray").unlink()
    with pytest.raises(UnusableCheckpointError, match=r"missing .* weights/ends/embed.weight/"):
        CheckpointWeights(path, MODEL)


def test_a_checkpoint_of_another_dtype_is_unusable(path):
    with pytest.raises(UnusableCheckpointError, match=r"expected .*bfloat16.* found .*float32"):
        CheckpointWeights(path, Model.build(MODEL.config, "bfloat16"))


def test_a_changed_chunk_fails_the_weight_it_belongs_to_and_no_other(path, source):
    (chunk,) = (path / "weights" / "layers.1" / "mlp.down_proj.weight").glob("0*")
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    weights = CheckpointWeights(path, MODEL)
    for layer, is_damaged in ((0, False), (1, True), (2, False)):
        name = "layers.mlp.down_proj.weight"
        out = np.empty_like(source.arrays[name][layer : layer + 1])
        index = (slice(layer, layer + 1), *(slice(0, size) for size in out.shape[1:]))
        if is_damaged:
            with pytest.raises(UnusableCheckpointError, match="has changed since it was written"):
                weights.read(name, index, out)
        else:
            weights.read(name, index, out)
            np.testing.assert_array_equal(out, source.arrays[name][layer : layer + 1])


def test_the_manifest_lists_the_size_of_every_other_file(path):
    listed = json.loads((path / MANIFEST_FILE).read_text())["files"]
    found = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()}
    assert found.keys() == listed.keys() | {MANIFEST_FILE}
    assert all(size == found[name].stat().st_size for name, (size, _) in listed.items())
