"""An engine over a tiny random model, and reference logits for its tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from experiments.bench.reference_model import ReferenceModel
from kvflow_jax.cache.pool import PoolSpec
from kvflow_jax.cache.transfer import DeviceTransfers, Direction
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.engine.engine import Engine
from kvflow_jax.engine.sizes import EngineSizes
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.loading.random_params import random_params
from kvflow_jax.models.model import Model
from kvflow_jax.models.rope import RopeConfig
from kvflow_jax.runtime.batch import BatchShapes
from kvflow_jax.runtime.interfaces import NoTransfers, WallClock
from kvflow_jax.runtime.runner import ModelRunner

CONFIG = ModelConfig(
    family="llama",
    vocab_size=300,
    hidden_size=48,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=12,
    rms_norm_eps=1e-5,
    rope=RopeConfig(10_000.0),
    tie_embeddings=True,
    max_model_len=256,
    eos_token_ids=(2,),
)
# Several times the float32 rounding of two layers; the model's logits spread over about 1.
TOLERANCE = 1e-4


PAGE, TILE = 4, 16
SHAPES = BatchShapes.plan(
    max_num_seqs=4,
    max_prefill_tokens=32,
    tile=TILE,
    page_size=PAGE,
    pages_per_seq=CONFIG.max_model_len // PAGE,
)
EXTENTS = (1, 4)
# Larger than a step's temporary arrays, so that a copy of the pool would be noticed.
RUNNER_POOL = PoolSpec(CONFIG.num_layers, 4000, PAGE, 2, 12)


class TinyModel:
    """A runner for all tests, so that each program compiles once."""

    def __init__(self) -> None:
        self.model = Model.build(CONFIG)
        self.params = random_params(self.model, seed=3)
        self.runner = ModelRunner(
            self.model, self.params, RUNNER_POOL, SHAPES, extent_sizes=EXTENTS
        )
        self.runner.warm_up()
        self._cold = ReferenceModel(self.model, self.params, CONFIG.max_model_len)

    def engine(self, *, num_pages=64, cache=None) -> Engine:
        """Return an engine with an empty cache of ``num_pages`` blocks; close its transfers."""
        self.runner.reset()
        cache = cache or CacheSettings()
        transfers = NoTransfers()
        if cache.num_host_blocks:
            transfers = DeviceTransfers(self.runner.block_sharding, dict.fromkeys(Direction, 1e9))
        pool = replace(RUNNER_POOL, num_pages=num_pages + 1)
        return Engine(
            EngineSizes(
                CONFIG.max_model_len, max_waiting=1000, pool=pool, shapes=SHAPES, cache=cache
            ),
            self.runner,
            WallClock(),
            transfers,
            tokenizer=None,
            vocab_size=CONFIG.vocab_size,
            eos_token_ids=CONFIG.eos_token_ids,
            seed=0,
        )

    def cold_logits(self, sequence) -> np.ndarray:
        """Return logits f32[len(sequence), vocab_size], computed without cache and batch."""
        return self._cold.logits(sequence)

    def assert_greedy(self, prompt, output) -> None:
        """Assert that each token is the most likely one, up to float32 rounding."""
        if output:
            gaps = self._cold.greedy_gaps(prompt, output)
            assert (gaps <= TOLERANCE).all(), (prompt, output, gaps)
