"""Processes that have loaded different models serve none."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from kvflow_jax.config import EngineConfig
from kvflow_jax.errors import ConfigError
from kvflow_jax.launch import prepare
from kvflow_jax.models.loading import LoadedModel
from kvflow_jax.models.model import Model
from kvflow_jax.models.version import version_of
from tests.engine.tiny_engine import CONFIG
from tests.hosts import pairs


def load(config=CONFIG, version="1", dtype="float32"):
    model = Model.build(config)
    params = {"embed": np.zeros((config.vocab_size, 2), dtype)}
    return LoadedModel(model, params, None, "tiny", version)


@pytest.mark.parametrize(
    ("its", "differ"),
    [
        (load(version="2"), "weights"),
        (load(dtype="float16"), "params"),
        (load(replace(CONFIG, rms_norm_eps=1e-6)), "config"),
        (load(replace(CONFIG, vocab_size=301), "2"), "config, params, weights"),
    ],
)
def test_processes_that_loaded_different_models_all_say_so(its, differ):
    failed = []

    def try_to_prepare(loaded, group):
        with pytest.raises(ConfigError) as error:
            prepare(loaded, EngineConfig(), progress=False, group=group)
        failed.append(str(error.value))

    with pairs.group() as (leader, follower):
        thread = threading.Thread(target=try_to_prepare, args=[its, follower])
        thread.start()
        try_to_prepare(load(), leader)
        thread.join()
    assert failed == 2 * [
        f"process 1 has loaded another model than process 0 (its {differ} differ): give all the "
        "same files or revision for --model"
    ]


def test_another_revision_of_the_same_size_is_another_version(tmp_path):
    content = np.random.default_rng(0).bytes(3_000_000)
    path = tmp_path / "model.safetensors"

    def version(data):
        path.write_bytes(data)
        return version_of([path])

    middle = len(content) // 2
    revised = content[:middle] + bytes(100_000) + content[middle + 100_000 :]
    versions = [version(each) for each in (content, revised, content[:-1], b"", content)]
    assert versions[0] == versions[-1]
    assert len(set(versions)) == 4
