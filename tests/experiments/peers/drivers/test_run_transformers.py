"""transformers' driver, over a model that counts."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.peers.drivers import run_transformers


class CountingModel:
    """Its next token is the last one plus 1; its cache is the list of the lengths it was given."""

    config = None

    def eval(self):
        return self

    def __call__(self, ids, past_key_values, use_cache, logits_to_keep):
        past_key_values.append(ids.shape[1])
        logits = np.zeros((len(ids), 1, 100))
        logits[np.arange(len(ids)), 0, ids[:, -1] + 1] = 1.0
        return SimpleNamespace(logits=logits)


@pytest.fixture
def engine(monkeypatch):
    caches = []

    def new_cache(config):
        caches.append([])
        return caches[-1]

    torch = SimpleNamespace(
        tensor=np.array, set_num_threads=int, set_grad_enabled=bool, float32="float32"
    )
    loader = SimpleNamespace(from_pretrained=lambda model, dtype, **_: CountingModel())
    fake = SimpleNamespace(AutoModelForCausalLM=loader, DynamicCache=new_cache)
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    return run_transformers.build({"model": "folder", "dtype": "float32"}), caches


def test_tokens_follow_each_other(engine):
    assert engine[0].greedy([1, 2], 3) == [3, 4, 5]


def test_each_measurement_has_its_own_cache(engine):
    measured, caches = engine
    measured.prefill_s([1, 2, 3])
    measured.cached_s([1, 2], [3])
    measured.decode_step_s([[1, 2], [3, 4]], num_steps=2, repeats=1)
    assert caches == [[3], [2, 1], [2, 1, 1]]
