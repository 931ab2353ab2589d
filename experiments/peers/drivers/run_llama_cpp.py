"""Drive llama.cpp batch by batch, over its C interface. Options: ``model``, a .gguf file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from experiments.peers.drivers.columns import Prompt, run

BATCH = 2048  # tokens a call; llama.cpp divides them further


def build(options: Mapping[str, Any]) -> LlamaCppEngine:
    """Return the engine of a model, with llama.cpp's default settings on all cores."""
    import llama_cpp

    llama_cpp.llama_backend_init()
    return LlamaCppEngine(llama_cpp, options["model"])


class LlamaCppEngine:
    """A model of llama.cpp. Each measurement has a context of its own, as large as it needs."""

    def __init__(self, api: Any, path: str) -> None:
        self._api = api
        self._model = api.llama_model_load_from_file(
            path.encode(), api.llama_model_default_params()
        )
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self._vocab_size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model))

    def prefill_s(self, prompt: Prompt) -> float:
        with self._sequences(1, len(prompt)) as sequences:
            start = time.perf_counter()
            sequences.extend([prompt])
            return time.perf_counter() - start

    def cached_s(self, prefix: Prompt, new: Prompt) -> float:
        with self._sequences(1, len(prefix) + len(new)) as sequences:
            sequences.extend([prefix])
            start = time.perf_counter()
            sequences.extend([new])
            return time.perf_counter() - start

    def decode_step_s(self, prompts: Sequence[Prompt], num_steps: int, repeats: int) -> float:
        times = []
        for _ in range(repeats):
            with self._sequences(len(prompts), len(prompts[0]) + num_steps + 1) as sequences:
                ids = sequences.extend(prompts)
                start = time.perf_counter()
                for _ in range(num_steps):
                    ids = sequences.extend([[token] for token in ids])
                times.append((time.perf_counter() - start) / num_steps)
        return min(times)

    def greedy(self, prompt: Prompt, num_tokens: int) -> Prompt:
        with self._sequences(1, len(prompt) + num_tokens) as sequences:
            tokens = sequences.extend([prompt])
            while len(tokens) < num_tokens:
                tokens += sequences.extend([tokens[-1:]])
            return tokens

    @contextmanager
    def _sequences(self, num: int, context_len: int) -> Iterator[_Sequences]:
        """Yield so many empty sequences of up to ``context_len`` tokens."""
        api, params = self._api, self._api.llama_context_default_params()
        params.n_ctx = num * (-(-context_len // 256) * 256)
        params.n_batch = BATCH
        params.n_seq_max = num
        params.n_threads = params.n_threads_batch = os.cpu_count() or 1
        context = api.llama_init_from_model(self._model, params)
        batch = api.llama_batch_init(BATCH, 0, 1)
        try:
            yield _Sequences(api, context, batch, [0] * num, self._vocab_size)
        finally:
            api.llama_batch_free(batch)
            api.llama_free(context)


class _Sequences:
    """Sequences of one context of llama.cpp, and how long each is."""

    def __init__(
        self, api: Any, context: Any, batch: Any, lengths: list[int], vocab_size: int
    ) -> None:
        self._api, self._context, self._batch = api, context, batch
        self._lengths, self._vocab_size = lengths, vocab_size

    def extend(self, tokens: Sequence[Prompt]) -> Prompt:
        """Append tokens to each sequence; return the most probable next token of each."""
        rows = [
            (token, sequence, i == len(new) - 1)
            for sequence, new in enumerate(tokens)
            for i, token in enumerate(new)
        ]
        following = []
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            self._decode(part)
            following += [self._argmax(i) for i, (_, _, is_last) in enumerate(part) if is_last]
        return following

    def _decode(self, rows: Sequence[tuple[int, int, bool]]) -> None:
        """Compute rows of token, sequence, and whether its logits are wanted."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, sequence, is_last) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = self._lengths[sequence]
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = is_last
            self._lengths[sequence] += 1
        if status := self._api.llama_decode(self._context, batch):
            raise SystemExit(f"llama_decode returned {status}")

    def _argmax(self, row: int) -> int:
        logits = self._api.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())


if __name__ == "__main__":
    run(build)
