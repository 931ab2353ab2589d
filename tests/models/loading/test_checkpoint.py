import fcntl
import json
import logging
import os
import shutil
from functools import partial

import numpy as np
import pytest

from kvflow_jax.errors import ModelLoadError
from kvflow_jax.models.loading import checkpoint, placement
from kvflow_jax.models.loading.checkpoint import LOCK_FILE, CheckpointStore
from kvflow_jax.models.loading.checkpoint_reader import MANIFEST_FILE, num_bytes
from kvflow_jax.models.loading.hf_config import read_config
from kvflow_jax.models.model import Model
from kvflow_jax.models.ops import XLA
from tests.models.families.cases import CONFIGS
from tests.models.sources import HostWeights, read_all
from tests.support.native import PACKING

CONFIG = read_config(CONFIGS["llama"])


class Source:
    """A conversion that counts how often it runs."""

    def __init__(self, model):
        self.weights = HostWeights.random(model)
        self.num_builds = 0

    def convert(self):
        self.num_builds += 1
        return self.weights

    def save_extras(self, folder):
        (folder / "extra.txt").write_text("extra")


@pytest.fixture(params=["float32", "bfloat16"])
def model(request):
    return Model.build(CONFIG, request.param)


def load(store, model, source, content_hash="a" * 64):
    weights, path = store.restore_or_convert(
        model, content_hash, source.convert, partial(read_all, model), source.save_extras
    )
    for name, weight in source.weights.arrays.items():
        assert weights[name].dtype == weight.dtype
        np.testing.assert_array_equal(weights[name], weight)
    assert (path / "extra.txt").read_text() == "extra"
    return path


def test_a_second_start_restores_the_checkpoint(tmp_path, model):
    store, source = CheckpointStore(tmp_path), Source(model)
    assert load(store, model, source) == load(store, model, source)
    assert source.num_builds == 1
    # No temporary folder is left.
    assert len(list((tmp_path / "models").iterdir())) == 1


def test_another_content_or_dtype_is_another_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path)
    paths = {
        load(store, model, Source(model), content_hash)
        for model in (Model.build(CONFIG), Model.build(CONFIG, "float16"))
        for content_hash in ("a" * 64, "b" * 64)
    }
    assert len(paths) == 4


@pytest.mark.parametrize("ops", PACKING.values(), ids=PACKING)
def test_weights_are_packed_once(tmp_path, monkeypatch, ops):
    model = Model.build(CONFIG, ops=ops)
    store, source = CheckpointStore(tmp_path), HostWeights.random(model)
    place = partial(placement.place, model)
    expected = place(source)
    for convert in (lambda: source, None):
        params, path = store.restore_or_convert(model, "a" * 64, convert, place)
        assert params.keys() == expected.keys()
        for name, weight in expected.items():
            np.testing.assert_array_equal(params[name], weight)
        monkeypatch.setattr(Model, "pack", None)
    files = sum(file.stat().st_size for file in (path / "weights").rglob("0*") if file.is_file())
    assert files == num_bytes(model) == model.weights_bytes


def test_each_form_of_weights_is_another_checkpoint(tmp_path):
    models = [Model.build(CONFIG, ops=ops) for ops in (XLA, *PACKING.values())]
    paths = {CheckpointStore(tmp_path).path("a" * 64, model.weights_form) for model in models}
    assert len(paths) == len(models)


def _delete_the_manifest(path):
    (path / MANIFEST_FILE).unlink()


def _truncate_an_array(path):
    files = [file for file in (path / "weights").rglob("*") if file.is_file()]
    largest = max(files, key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def _delete_the_weights(path):
    shutil.rmtree(path / "weights")


def _record_other_shapes(path):
    manifest = json.loads((path / MANIFEST_FILE).read_text())
    manifest["weights"]["embed.weight"] = "float32[1, 1]"
    (path / MANIFEST_FILE).write_text(json.dumps(manifest))


def _change_a_byte(path):
    """As a bad sector does: the size stays the same."""
    for file in (path / "weights" / "layers.1").glob("*.weight/0*"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)


def _write_an_older_format(path):
    manifest = json.loads((path / MANIFEST_FILE).read_text())
    manifest["files"] = {name: size for name, (size, _) in manifest["files"].items()}
    (path / MANIFEST_FILE).write_text(json.dumps(manifest))


def _truncate_an_extra_file(path):
    (path / "extra.txt").write_text("")


@pytest.mark.parametrize(
    "damage",
    [
        _delete_the_manifest,
        _truncate_an_array,
        _change_a_byte,
        _delete_the_weights,
        _record_other_shapes,
        _write_an_older_format,
        _truncate_an_extra_file,
    ],
)
def test_an_unusable_checkpoint_is_converted_again_with_a_warning(tmp_path, caplog, damage):
    model = Model.build(CONFIG)
    store, source = CheckpointStore(tmp_path), Source(model)
    damage(load(store, model, source))
    with caplog.at_level(logging.WARNING, logger="kvflow_jax"):
        load(store, model, source)
    assert "cannot use a cached checkpoint, converting again" in caplog.text
    assert source.num_builds == 2
    load(store, model, source)
    assert source.num_builds == 2


@pytest.mark.parametrize("damage", [_change_a_byte, _delete_the_weights, _truncate_an_extra_file])
def test_an_unusable_checkpoint_that_cannot_be_removed_is_bypassed(
    tmp_path, monkeypatch, caplog, damage
):
    """For example that of another user: the model is loaded from its original files."""
    model = Model.build(CONFIG)
    store, source = CheckpointStore(tmp_path), Source(model)
    damage(load(store, model, source))
    monkeypatch.setattr(checkpoint, "_remove", lambda path: None)
    for _ in range(2):
        weights, path = store.restore_or_convert(
            model, "a" * 64, source.convert, partial(read_all, model), source.save_extras
        )
        assert path is None
        for name, weight in source.weights.arrays.items():
            np.testing.assert_array_equal(weights[name], weight)
    assert "converted weights are not cached" in caplog.text
    assert len(list((tmp_path / "models").iterdir())) == 1


def test_a_broken_link_is_replaced(tmp_path):
    model = Model.build(CONFIG)
    store, source = CheckpointStore(tmp_path), Source(model)
    path = store.path("a" * 64, model.dtype)
    path.parent.mkdir()
    path.symlink_to(tmp_path / "nothing")
    assert load(store, model, source) == path
    load(store, model, source)
    assert source.num_builds == 1


def test_a_kill_while_writing_leaves_no_checkpoint(tmp_path):
    model = Model.build(CONFIG)
    store, source = CheckpointStore(tmp_path), Source(model)

    def killed(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.restore_or_convert(model, "a" * 64, source.convert, partial(read_all, model), killed)
    assert not store.path("a" * 64, "float32").exists()
    load(store, model, source)
    assert source.num_builds == 2


def test_the_temporary_folder_of_a_killed_process_is_removed(tmp_path):
    """At once if its lock is free; after a day if an older version wrote it without a lock."""
    model, models = Model.build(CONFIG), tmp_path / "models"
    temporary = {
        name: models / f"{name}-v5-float32.tmp-x" for name in ("dead", "old", "new", "alive")
    }
    for name, folder in temporary.items():
        folder.mkdir(parents=True)
        if name in ("dead", "alive"):
            (folder / LOCK_FILE).touch()
    os.utime(temporary["old"], (0, 0))
    with (temporary["alive"] / LOCK_FILE).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = load(CheckpointStore(tmp_path), model, Source(model))
    assert set(models.iterdir()) == {kept, temporary["new"], temporary["alive"]}


def test_a_conversion_that_fails_caches_nothing_and_raises(tmp_path):
    model = Model.build(CONFIG)
    source = Source(model)

    def raise_problems():
        raise ModelLoadError("too large for float16")

    source.weights.raise_problems = raise_problems
    with pytest.raises(ModelLoadError, match="too large"):
        load(CheckpointStore(tmp_path), model, source)
    assert not list((tmp_path / "models").iterdir())
