"""Processes that have loaded different models refuse to serve."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from kvflow_jax.api.launch import prepare
from kvflow_jax.distributed.consistency import check_consistent, model_properties
from kvflow_jax.engine.config import EngineConfig
from kvflow_jax.errors import ConfigError
from kvflow_jax.models.loading.load import LoadedModel
from kvflow_jax.models.model import Model
from tests.distributed import pairs
from tests.support.tiny_engine import CONFIG


def load(version="1", dtype="float32"):
    model = Model.build(CONFIG)
    params = {"embed": np.zeros((CONFIG.vocab_size, 2), dtype)}
    return LoadedModel(model, params, None, "tiny", version)


def refusals(act, *each):
    """The error that both processes of a group raise from ``act``, each with one of ``each``."""
    refused = []

    def try_to(group, one):
        with pytest.raises(ConfigError) as error:
            act(group, one)
        refused.append(str(error.value))

    with pairs.group() as (leader, follower):
        thread = threading.Thread(target=try_to, args=[follower, each[1]])
        thread.start()
        try_to(leader, each[0])
        thread.join()
    first, second = refused
    assert first == second
    assert "\n" not in first
    assert "process 1 has loaded another model than process 0 (" in first
    assert "give all the same files or revision for --model" in first
    return first


@pytest.mark.parametrize(
    ("its", "differ"),
    [
        (load(version="2"), "(weights 2, not 1)"),
        (load(dtype="float16"), "(shapes "),
    ],
)
def test_every_process_reports_different_weights(its, differ):
    def act(group, loaded):
        prepare(loaded, EngineConfig(), progress=False, group=group)

    assert differ in refusals(act, load(), its)


@pytest.mark.parametrize(
    ("change", "differ"),
    [
        ({"rms_norm_eps": 1e-6}, "(rms_norm_eps 1e-06, not 1e-05)"),
        ({"vocab_size": 301, "num_layers": 3}, "(num_layers 3, not 2; vocab_size 301, not 300)"),
        ({"windows": (3,) * 100}, "(windows (3, 3, 3"),
    ],
)
def test_models_are_compared_before_they_have_weights(change, differ):
    models = (Model.build(CONFIG), Model.build(replace(CONFIG, **change)))
    message = refusals(
        lambda group, model: check_consistent(group, model_properties(model)), *models
    )
    assert differ in message
    assert len(message) < 400
