"""The keyword arguments of ``LLM``: the fields of its configurations, for type checkers."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from kvflow_jax.api.load_config import Attention, Dtype, LoadConfig, Quantize
from kvflow_jax.cache.policy import EvictionOrder
from kvflow_jax.config.flag import with_values
from kvflow_jax.engine.cache_config import BackupTime, CacheConfig, CacheMode
from kvflow_jax.engine.config import EngineConfig
from kvflow_jax.speculation.config import SpeculativeConfig


class LLMOptions(TypedDict, total=False):
    """Fields of ``LoadConfig``, ``EngineConfig`` and ``CacheConfig``, which define their meaning.

    A test compares names and types with the fields.
    """

    dtype: Dtype
    quantize: Quantize
    attention: Attention
    tensor_parallel: int
    random_weights: bool
    chat_template: Path | None
    generation_config: str
    cache_dir: Path | None
    cache_dir_gib: float

    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int | None
    page_size: int
    pool_gib: float | None
    num_pages: int | None
    max_waiting: int
    seed: int | None
    deterministic: bool
    speculative_config: SpeculativeConfig | Mapping[str, object] | None
    trace: Path | str | None
    step_timeout_s: float

    eviction: str | EvictionOrder | None
    prefetch: bool | None
    host_cache_gib: float | None
    backup: BackupTime
    link_ratio: float | None
    guard: bool | None
    admission: bool | None
    predictor: str
    learned_order: Path | str | None


def configs_of(
    model: str, cache: CacheMode | CacheConfig, options: LLMOptions
) -> tuple[LoadConfig, EngineConfig]:
    """Return the configurations that arguments of ``LLM`` describe.

    Args:
        cache: a cache mode, or settings of the cache that ``options`` override.

    Raises:
        ConfigError: a value is out of range, or two contradict each other.
        TypeError: ``LLM`` has no argument of that name.
    """
    known = LLMOptions.__annotations__
    for name in options:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise TypeError(f"LLM() got an unexpected keyword argument {name!r}{hint}")
    if not isinstance(cache, CacheConfig):
        cache = CacheConfig(cache)
    return (
        with_values(LoadConfig(model), options),
        with_values(EngineConfig(cache=cache), options),
    )
