"""The settings of an engine. Imports no JAX, so that ``--help`` needs none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from kvflow_jax.config.flag import Config, flag
from kvflow_jax.config.values import COUNT, NEW_FILE, POSITIVE, SEED, SWITCH
from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.errors import ConfigError
from kvflow_jax.speculation.config import (
    DEFAULT_SPECULATION,
    SPECULATIVE_CONFIG,
    SpeculativeConfig,
)


@dataclass(frozen=True)
class EngineConfig(Config):
    """The user's engine settings; ``EngineSizes`` derives and logs those of None.

    Raises:
        ConfigError: a value is out of range, or two contradict each other.
    """

    title: ClassVar[str] = "engine"

    max_model_len: int | None = flag(
        None,
        "maximum sequence length, prompt and output tokens together",
        COUNT,
        unit="TOKENS",
        if_unset="the model's context, or as much of it as the pool holds",
    )
    max_num_seqs: int = flag(32, "maximum number of requests in the running batch", COUNT)
    max_num_batched_tokens: int | None = flag(
        None,
        "maximum prompt tokens per engine step",
        COUNT,
        unit="TOKENS",
        if_unset="256 on CPU in float32, 512 on CPU in 16 bits, else 2048",
    )
    page_size: int = flag(16, "tokens per KV block", COUNT, unit="TOKENS")
    pool_gib: float | None = flag(
        None,
        "device memory for the KV pool, GiB",
        POSITIVE,
        unit="GIB",
        if_unset="85% of the free memory; on CPU a quarter of it, and at most 4 GiB. Rounded down, "
        "so that later starts find their programs compiled",
    )
    num_pages: int | None = flag(None, "KV pool size in blocks, instead of --pool-gib", COUNT)
    max_waiting: int = flag(
        1024,
        "maximum number of queued requests of a tenant; further requests get HTTP 429 "
        "(backpressure). All tenants together may have four times as many",
        COUNT,
        is_per_process=True,
    )
    seed: int | None = flag(
        None,
        "seed of random weights and of requests without a seed",
        SEED,
        if_unset="0 for weights, from the system for requests",
    )
    deterministic: bool = flag(
        False,
        "make tokens independent of the batch and of the cache state. Slower: a step holds either "
        "one prompt or decoding requests, and outputs are not shared as prefixes",
        SWITCH,
    )
    speculative_config: SpeculativeConfig | Mapping[str, object] | None = flag(
        DEFAULT_SPECULATION,
        "speculative decoding without a draft model: draft the next tokens from finished answers "
        "and the request's own tokens, and verify several in one step. Tokens stay the same. JSON "
        "with vLLM's keys, or none",
        SPECULATIVE_CONFIG,
        if_unset='{"method": "suffix", "num_speculative_tokens": 16}',
    )
    trace: Path | str | None = flag(
        None,
        "write a trace of the engine to FILE, in Chrome's format, readable by ui.perfetto.dev",
        NEW_FILE,
        is_per_process=True,
    )
    step_timeout_s: float = flag(
        20.0,
        "seconds after which a step that has not ended is reported by /health and /ready, and its "
        "requests get an error; at least three times the longest step so far",
        POSITIVE,
        unit="SECONDS",
        is_per_process=True,
    )
    cache: CacheConfig = CacheConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_pages is not None and self.pool_gib is not None:
            raise ConfigError("set num_pages or pool_gib, not both")
        # Settings are equal, and hashed, and compared between processes, however they came.
        speculative_config = SpeculativeConfig.of(self.speculative_config)
        object.__setattr__(self, "speculative_config", speculative_config)
