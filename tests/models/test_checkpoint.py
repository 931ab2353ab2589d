import json
import logging
import shutil
from functools import partial

import numpy as np
import pytest

from kvflow_jax.models.checkpoint import CheckpointStore, default_cache_dir
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.kept_weights import COMPLETE_FILE
from kvflow_jax.models.model import Model
from tests.models import tiny
from tests.models.sources import HostWeights, read_all

CONFIG = ModelConfig.from_hf(tiny.CONFIGS["tied-gqa"])


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


def _tear_what_lies_beside(path):
    (path / "beside.txt").write_text("")


@pytest.mark.parametrize(
    "damage",
    [_lose_marker, _tear_an_array, _lose_the_weights, _name_other_shapes, _tear_what_lies_beside],
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


def test_default_cache_dir_is_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "kvflow-jax"
