import fcntl
import json
import logging
import os
import shutil
from functools import partial

import numpy as np
import orbax.checkpoint as ocp
import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading import checkpoint, checkpoint_reader
from kvflow_jax.models.loading.checkpoint import LOCK_FILE, CheckpointStore, default_cache_dir
from kvflow_jax.models.loading.checkpoint_reader import COMPLETE_FILE, KeptWeights
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.model import Model
from tests.models import tiny
from tests.models.sources import HostWeights, read_all

CONFIG = read_config(tiny.CONFIGS["tied-gqa"])


class Source:
    """A conversion that counts how often it runs."""

    def __init__(self, model):
        self.weights = HostWeights.random(model)
        self.num_builds = 0

    def convert(self):
        self.num_builds += 1
        return self.weights

    def save_beside(self, folder):
        (folder / "beside.txt").write_text("kept")


@pytest.fixture(params=["float32", "bfloat16"])
def model(request):
    return Model.build(CONFIG, request.param)


def load(store, model, source, content_hash="a" * 64):
    weights, path = store.restore_or_convert(
        model, content_hash, source.convert, partial(read_all, model), source.save_beside
    )
    for name, weight in source.weights.arrays.items():
        assert weights[name].dtype == weight.dtype
        np.testing.assert_array_equal(weights[name], weight)
    assert (path / "beside.txt").read_text() == "kept"
    return path


def test_second_start_restores(tmp_path, model):
    store, source = CheckpointStore(tmp_path), Source(model)
    assert load(store, model, source) == load(store, model, source)
    assert source.num_builds == 1
    assert len(list((tmp_path / "models").iterdir())) == 1  # no temporary folder stays


def test_another_content_or_dtype_is_another_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path)
    paths = {
        load(store, model, Source(model), content_hash)
        for model in (Model.build(CONFIG), Model.build(CONFIG, "float16"))
        for content_hash in ("a" * 64, "b" * 64)
    }
    assert len(paths) == 4


def _lose_marker(path):
    (path / COMPLETE_FILE).unlink()


def _tear_an_array(path):
    files = [file for file in (path / "weights").rglob("*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def _lose_the_weights(path):
    shutil.rmtree(path / "weights")


def _name_other_shapes(path):
    complete = json.loads((path / COMPLETE_FILE).read_text())
    complete["weights"]["embed.weight"] = "float32[1, 1]"
    (path / COMPLETE_FILE).write_text(json.dumps(complete))


def _change_a_byte(path):
    """As a lost sector does: the size stays."""
    for file in (path / "weights" / "layers.1").glob("*.weight/0*"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)


def _write_an_older_format(path):
    complete = json.loads((path / COMPLETE_FILE).read_text())
    complete["files"] = {name: size for name, (size, _) in complete["files"].items()}
    (path / COMPLETE_FILE).write_text(json.dumps(complete))


def _tear_what_lies_beside(path):
    (path / "beside.txt").write_text("")


@pytest.mark.parametrize(
    "damage",
    [
        _lose_marker,
        _tear_an_array,
        _change_a_byte,
        _lose_the_weights,
        _name_other_shapes,
        _write_an_older_format,
        _tear_what_lies_beside,
    ],
)
def test_what_cannot_be_read_is_rebuilt_with_a_warning(tmp_path, caplog, damage):
    model = Model.build(CONFIG)
    store, source = CheckpointStore(tmp_path), Source(model)
    damage(load(store, model, source))
    with caplog.at_level(logging.WARNING, logger="kvflow_jax"):
        load(store, model, source)
    assert "unreadable, building it again" in caplog.text
    assert source.num_builds == 2
    load(store, model, source)
    assert source.num_builds == 2


@pytest.mark.parametrize("damage", [_change_a_byte, _lose_the_weights, _tear_what_lies_beside])
def test_what_can_neither_be_read_nor_removed_is_not_used(tmp_path, monkeypatch, caplog, damage):
    """Another user's, say: nothing of it is taken, and the model runs."""
    model = Model.build(CONFIG)
    store, source = CheckpointStore(tmp_path), Source(model)
    damage(load(store, model, source))
    monkeypatch.setattr(checkpoint, "_remove", lambda path: None)
    for _ in range(2):
        weights, path = store.restore_or_convert(
            model, "a" * 64, source.convert, partial(read_all, model), source.save_beside
        )
        assert path is None
        for name, weight in source.weights.arrays.items():
            np.testing.assert_array_equal(weights[name], weight)
    assert "converted weights are not kept" in caplog.text
    assert len(list((tmp_path / "models").iterdir())) == 1


def test_a_link_to_nothing_is_replaced(tmp_path):
    model = Model.build(CONFIG)
    store, source = CheckpointStore(tmp_path), Source(model)
    path = store.path("a" * 64, model.dtype)
    path.parent.mkdir()
    path.symlink_to(tmp_path / "nothing")
    assert load(store, model, source) == path
    load(store, model, source)
    assert source.num_builds == 1


def test_a_kill_while_writing_leaves_nothing_that_is_trusted(tmp_path):
    model = Model.build(CONFIG)
    store, source = CheckpointStore(tmp_path), Source(model)

    def killed(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.restore_or_convert(model, "a" * 64, source.convert, partial(read_all, model), killed)
    assert not store.path("a" * 64, "float32").exists()
    load(store, model, source)
    assert source.num_builds == 2


def test_what_a_killed_process_was_writing_is_swept(tmp_path):
    """At once where its lock says so; without a lock, of another version, after a day."""
    model, models = Model.build(CONFIG), tmp_path / "models"
    strays = {name: models / f"{name}-v4-float32.tmp-x" for name in ("dead", "old", "new", "alive")}
    for name, stray in strays.items():
        stray.mkdir(parents=True)
        if name in ("dead", "alive"):
            (stray / LOCK_FILE).touch()
    os.utime(strays["old"], (0, 0))
    with (strays["alive"] / LOCK_FILE).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = load(CheckpointStore(tmp_path), model, Source(model))
    assert set(models.iterdir()) == {kept, strays["new"], strays["alive"]}


def test_only_the_chunks_of_a_part_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_reader, "CHUNK_BYTES", 4096)
    model = Model.build(CONFIG)
    source = Source(model)
    path = load(CheckpointStore(tmp_path), model, source)
    name = "layers.mlp.down_proj.weight"  # [3, 96, 64]
    expected = source.weights.arrays[name][1:2, :, 32:]
    read = []
    digest = checkpoint_reader._digest
    monkeypatch.setattr(
        checkpoint_reader, "_digest", lambda file: read.append(file) or digest(file)
    )
    kept = KeptWeights(path, model)
    read.clear()
    out = np.empty_like(expected)
    kept.read(name, (slice(1, 2), slice(0, 96), slice(32, 64)), out)
    np.testing.assert_array_equal(out, expected)
    chunks = [file for file in read if not file.name.startswith(".")]
    assert {file.parent.name for file in chunks} == {"mlp.down_proj.weight"}
    assert sum(file.stat().st_size for file in chunks) == expected.nbytes


def test_what_is_kept_is_orbax_own(tmp_path):
    model = Model.build(CONFIG)
    source = Source(model)
    path = load(CheckpointStore(tmp_path), model, source)
    as_numpy = {"mlp_norm.weight": ocp.RestoreArgs(restore_type=np.ndarray)}
    with checkpoint_reader.checkpointer() as orbax:
        layer = orbax.restore(
            path / "weights" / "layers.2",
            args=ocp.args.PyTreeRestore(
                item=dict.fromkeys(as_numpy, 0), restore_args=as_numpy, partial_restore=True
            ),
        )
    expected = source.weights.arrays["layers.mlp_norm.weight"][2]
    np.testing.assert_array_equal(layer["mlp_norm.weight"], expected)


def test_a_conversion_that_fails_keeps_nothing_and_says_why(tmp_path):
    model = Model.build(CONFIG)
    source = Source(model)

    def finish():
        raise ModelLoadError("too large for float16")

    source.weights.finish = finish
    with pytest.raises(ModelLoadError, match="too large"):
        load(CheckpointStore(tmp_path), model, source)
    assert not list((tmp_path / "models").iterdir())


def test_default_cache_dir_is_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "kvflow-jax"
