"""Drive transformers step by step. Options: ``model``, a Hugging Face folder; ``dtype``."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.peers.drivers.columns import Prompt, run


def build(options: Mapping[str, Any]) -> TransformersEngine:
    """Return the engine of a model, with PyTorch's own attention on all cores."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_grad_enabled(False)
    model: Any = AutoModelForCausalLM.from_pretrained(
        options["model"], dtype=getattr(torch, options["dtype"]), attn_implementation="sdpa"
    )
    return TransformersEngine(model.eval())


class TransformersEngine:
    """A model of transformers, whose cache is a value that each call passes on."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def prefill_s(self, prompt: Prompt) -> float:
        start = time.perf_counter()
        self._extend(self._cache(), self._ids([prompt]))
        return time.perf_counter() - start

    def cached_s(self, prefix: Prompt, new: Prompt) -> float:
        cache = self._cache()
        self._extend(cache, self._ids([prefix]))
        start = time.perf_counter()
        self._extend(cache, self._ids([new]))
        return time.perf_counter() - start

    def decode_step_s(self, prompts: Sequence[Prompt], num_steps: int, repeats: int) -> float:
        times = []
        for _ in range(repeats):
            cache = self._cache()
            ids = self._extend(cache, self._ids(prompts))
            start = time.perf_counter()
            for _ in range(num_steps):
                ids = self._extend(cache, ids)
            times.append((time.perf_counter() - start) / num_steps)
        return min(times)

    def greedy(self, prompt: Prompt, num_tokens: int) -> Prompt:
        cache = self._cache()
        ids = self._extend(cache, self._ids([prompt]))
        tokens = [int(ids[0, 0])]
        while len(tokens) < num_tokens:
            ids = self._extend(cache, ids)
            tokens.append(int(ids[0, 0]))
        return tokens

    def _cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config)

    def _ids(self, prompts: Sequence[Prompt]) -> Any:
        import torch

        return torch.tensor(list(prompts))

    def _extend(self, cache: Any, ids: Any) -> Any:
        """Compute tokens i64[rows, n] behind a cache; return the next ones, i64[rows, 1]."""
        result = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return result.logits[:, -1:].argmax(-1)


if __name__ == "__main__":
    run(build)
