"""This engine's driver, over a fake ``LLM``."""

from types import SimpleNamespace

import kvflow_jax
from experiments.peers.drivers import run_kvflow


def test_requests_are_greedy_and_of_one_length(monkeypatch):
    class FakeLLM:
        def __init__(self, model, progress, **options):
            self.options = (model, options)

        def generate(self, prompts, params, progress):
            assert (params.temperature, params.ignore_eos) == (0.0, True)
            return [SimpleNamespace(token_ids=prompt[:1] * params.max_tokens) for prompt in prompts]

    monkeypatch.setattr(kvflow_jax, "LLM", FakeLLM)
    engine = run_kvflow.build({"model": "m", "llm": {"dtype": "float32"}})
    assert engine.greedy([4, 5], 2) == [4, 4]
