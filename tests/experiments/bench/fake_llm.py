"""An ``LLM`` that generates token 3 at once, and steps of fake batches."""

import time
from types import SimpleNamespace

import numpy as np

from kvflow_jax.cache.pool import PoolSpec
from tests.support.tiny_engine import CONFIG


class FakeRunner:
    def submit(self, batch):
        return SimpleNamespace(result=lambda: None)


class FakeLLM:
    """Runs one decode step a token, each over all prompts of a call."""

    config = CONFIG
    model = SimpleNamespace(dtype="float32")
    weights_bytes = 1 << 20

    def __init__(self, model, **options):
        self.model_name, self.options = model, options
        self.runner = FakeRunner()
        self.sizes = SimpleNamespace(
            shapes=SimpleNamespace(max_prefill_tokens=4), pool=PoolSpec(1, 3, 16, 1, 1)
        )
        self.prompts = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def generate(self, prompts, params, progress=True):
        self.prompts.append(prompts)
        now = time.perf_counter()
        stats = SimpleNamespace(arrival_s=now, first_token_s=now + 1e-3, finished_s=now + 2e-3)
        if prompts and isinstance(prompts[0], int):
            return SimpleNamespace(stats=stats)
        num = len(prompts)
        for _ in range(params.max_tokens):
            batch = SimpleNamespace(
                query_len=np.ones(num, np.int32), shape=SimpleNamespace(num_decode=num)
            )
            self.runner.submit(batch)
        return [SimpleNamespace(stats=stats)] * num

    def stream(self, ids, params):
        yield from range(params.max_tokens)
