"""Cold, teacher-forced logits: what every cached, batched and preempted run is held against."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from kvflow_jax.cache.pool import KVPool, PoolSpec
from kvflow_jax.models.attention import Rows
from kvflow_jax.models.model import Model, Params


class ColdModel:
    """Runs whole sequences through an empty pool of their own, no batch, no cache.

    Args:
        max_len: longest sequence, tokens; every sequence costs as much as this.
    """

    def __init__(self, model: Model, params: Params, max_len: int) -> None:
        config = model.config
        self._model, self._params, self._max_len = model, params, max_len
        # One page holds the sequence; page 0 is the null page.
        self._spec = PoolSpec(
            num_layers=config.num_layers,
            num_pages=2,
            page_size=max_len,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=model.dtype,
        )
        self._run = jax.jit(self._forward)

    def logits(self, sequence: Sequence[int]) -> np.ndarray:
        """f32[len(sequence), vocab_size]: row i is what follows token i."""
        tokens = np.zeros(self._max_len, np.int32)
        tokens[: len(sequence)] = sequence
        logits = self._run(self._params, tokens, np.int32(len(sequence)))
        return np.asarray(logits)[: len(sequence)]

    def greedy_gaps(self, prompt: Sequence[int], output: Sequence[int]) -> np.ndarray:
        """f32[len(output)]: how far each token's logit lies below the best at its place.

        0 for a greedy run without rounding; up to the dtype's tolerance at a near tie.
        """
        logits = self.logits([*prompt, *output])[len(prompt) - 1 : -1]
        return logits.max(-1) - logits[np.arange(len(output)), list(output)]

    def _forward(self, params: Params, tokens: jax.Array, length: jax.Array) -> jax.Array:
        size = self._max_len
        rows = Rows(
            page_table=np.ones((1, 1), np.int32),
            query_start=np.zeros(1, np.int32),
            query_len=length[None],
            write_slots=np.arange(size, 2 * size, dtype=np.int32),
            num_decode=0,
            tile=size,
        )
        positions = np.arange(size, dtype=np.int32)
        pool = KVPool.zeros(self._spec)
        hidden, _ = self._model.forward(params, tokens, positions, rows, pool)
        return self._model.logits(params, hidden)
