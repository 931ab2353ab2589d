"""Cold, teacher-forced logits: the reference of every cached, batched and preempted run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.models.attention import AttentionMetadata
from kvflow_jax.models.model import Model, Params


class ReferenceModel:
    """Runs one complete sequence at a time through an empty pool, without batch or cache.

    Args:
        max_len: tokens of the longest sequence.
        min_len: tokens of the shortest program; lengths are padded to the next doubling of it.
    """

    def __init__(self, model: Model, params: Params, max_len: int, min_len: int = 128) -> None:
        self._model, self._params = model, params
        self._lengths = [max_len]
        while self._lengths[0] > min_len:
            self._lengths.insert(0, -(-self._lengths[0] // 2))
        self._run = jax.jit(self._forward)
        self._logits = jax.jit(partial(Model.logits, model))

    def logits(self, sequence: Sequence[int], start: int = 0) -> np.ndarray:
        """Return the logits of token ``start`` and later ones, f32[n - start, vocab_size]."""
        tokens = np.zeros(self._padded(len(sequence)), np.int32)
        tokens[: len(sequence)] = sequence
        hidden = np.asarray(self._run(self._params, tokens, np.int32(len(sequence))))
        # Pad to few sizes, but not to ``max_len``: the product with the vocabulary is expensive.
        rows = np.zeros((self._padded(len(sequence) - start), hidden.shape[1]), hidden.dtype)
        rows[: len(sequence) - start] = hidden[start : len(sequence)]
        return np.asarray(self._logits(self._params, rows))[: len(sequence) - start]

    def greedy_gaps(self, prompt: Sequence[int], output: Sequence[int]) -> np.ndarray:
        """Return how far the logit of each output token is below the maximum, f32[len(output)].

        A greedy run gives 0 without rounding, and up to the dtype's tolerance at a near tie.
        """
        logits = self.logits([*prompt, *output[:-1]], start=len(prompt) - 1)
        gaps: np.ndarray = logits.max(-1) - logits[np.arange(len(output)), list(output)]
        return gaps

    def _padded(self, length: int) -> int:
        return next(size for size in self._lengths if size >= length)

    def _forward(self, params: Params, tokens: jax.Array, length: jax.Array) -> jax.Array:
        config, size = self._model.config, len(tokens)
        metadata = AttentionMetadata(
            page_table=jnp.ones((1, 1), jnp.int32),
            query_start=jnp.zeros(1, jnp.int32),
            query_len=length[None],
            write_kv_slots=jnp.arange(size, 2 * size, dtype=jnp.int32),
            num_decode=0,
            tile=size,
        )
        positions = jnp.arange(size, dtype=jnp.int32)
        # One page has the complete sequence; page 0 is the null page.
        spec = PoolSpec(
            num_layers=config.num_layers,
            num_pages=2,
            page_size=size,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=self._model.dtype,
        )
        hidden, _ = self._model.forward(params, tokens, positions, metadata, KVPool.zeros(spec))
        return hidden
