"""Sizes of an engine: what the caller gave, and what follows from free memory."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import jax

from kvflow_jax.cache.pool import PoolSpec
from kvflow_jax.engine.cache_config import CacheConfig, CacheSettings
from kvflow_jax.errors import CapacityError, ConfigError
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.memory import FreeMemory
from kvflow_jax.runtime.batch import BatchShapes

log = logging.getLogger(__name__)

GIB = 1 << 30
# A CPU's memory is everyone's: take a modest share of what is free. A device's is ours alone, save
# what a step's temporaries need.
_HOST_SHARE, _DEVICE_SHARE = 0.25, 0.85
_MAX_HOST_POOL_BYTES = 4 * GIB
# Prompts run as fast in steps of 256 tokens as of 512 on CPU, and who decodes beside them waits
# 0.8 s rather than 2.3 (experiments/NOTES.md); an accelerator needs more tokens to be busy.
PREFILL_TILE = 128
_CPU_BATCHED_TOKENS, _DEVICE_BATCHED_TOKENS = 256, 2048


@dataclass(frozen=True)
class EngineConfig:
    """Sizes of an engine; None is derived and said in the log.

    Args:
        max_model_len: longest sequence, prompt and output, tokens.
        max_num_seqs: most requests that run at once.
        max_num_batched_tokens: most prompt tokens of one step; 256 on CPU, else 2048.
        page_size: tokens of a KV block.
        num_pages: blocks of the pool; or
        pool_gib: memory of the pool, GiB; a quarter of what is free on CPU, at most 4 GiB, else
            most of the device's.
        max_waiting: most requests that wait; beyond it they are refused.
        seed: from which requests without a seed of their own draw theirs; None: from the system.
        deterministic: the same tokens for the same request to the last bit, whatever runs beside
            it and whatever the cache holds; slower, because prompts and decoding take turns, and
            outputs are not shared as prefixes.
        cache: what is kept where, and what goes first.
        trace: file for a trace of what the engine does, for Perfetto; None: no trace.
    """

    max_model_len: int | None = None
    max_num_seqs: int = 32
    max_num_batched_tokens: int | None = None
    page_size: int = 16
    num_pages: int | None = None
    pool_gib: float | None = None
    max_waiting: int = 1024
    seed: int | None = None
    deterministic: bool = False
    cache: CacheConfig = CacheConfig()
    trace: Path | str | None = None

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "page_size", "max_waiting"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_model_len", "max_num_batched_tokens", "num_pages"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.pool_gib is not None and not 0 < self.pool_gib < math.inf:
            raise ConfigError(f"pool_gib must be above 0, got {self.pool_gib}")
        if self.num_pages is not None and self.pool_gib is not None:
            raise ConfigError("give num_pages or pool_gib, not both")


@dataclass(frozen=True)
class EngineSizes:
    """Everything decided: no None, no auto."""

    max_model_len: int
    max_waiting: int
    pool: PoolSpec
    shapes: BatchShapes
    cache: CacheSettings = CacheSettings()

    @classmethod
    def resolve(
        cls,
        config: EngineConfig,
        model: ModelConfig,
        dtype: str,
        device: jax.Device,
        *,
        num_devices: int = 1,
        free: FreeMemory | None = None,
    ) -> EngineSizes:
        """Decide what the config left open from the model and the device's free memory.

        Args:
            num_devices: such as this one that share model and pool.
            free: weights being loaded; None: what there is now, here.

        Raises:
            CapacityError: not even one request of the asked length fits; says how much is missing.
            ConfigError: the model's context is shorter than what is asked.
        """
        free = free or FreeMemory.of(device)
        page = config.page_size
        one_page = PoolSpec(
            num_layers=model.num_layers,
            num_pages=1,
            page_size=page,
            num_kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            dtype=dtype,
        )
        wanted_len = min(config.max_model_len or model.max_model_len, model.max_model_len)
        if config.max_model_len is not None and config.max_model_len > model.max_model_len:
            raise ConfigError(
                f"max_model_len {config.max_model_len} is past the model's context of "
                f"{model.max_model_len} tokens"
            )
        pages_wanted = -(-wanted_len // page)
        if config.num_pages is not None:
            num_pages = config.num_pages
        else:
            given = config.pool_gib
            budget = int(given * GIB) if given is not None else _pool_budget(free, num_devices)
            # More than every running request at full length could use helps only the cache.
            num_pages = budget // one_page.page_bytes - 1
        if num_pages < pages_wanted:
            if config.max_model_len is not None or num_pages < 2:
                missing = (pages_wanted - max(num_pages, 0)) * one_page.page_bytes
                raise CapacityError(
                    f"one request of {wanted_len} tokens needs {pages_wanted} KV blocks, the pool "
                    f"has {max(num_pages, 0)}: {missing / GIB:.2f} GiB more are needed; give the "
                    "pool more memory (pool_gib, --pool-gib) or lower max_model_len"
                )
            wanted_len = num_pages * page
            log.warning("the pool holds %d tokens: max_model_len is cut to that", wanted_len)
        # Tiles start where blocks do, so that what is computed in part is always whole blocks.
        budget_tokens = config.max_num_batched_tokens or _batched_tokens(device)
        tile = _tile(page, budget_tokens)
        shapes = BatchShapes.plan(
            max_num_seqs=config.max_num_seqs,
            max_prefill_tokens=budget_tokens,
            tile=tile,
            page_size=page,
            pages_per_seq=-(-wanted_len // page),
            deterministic=config.deterministic,
        )
        pool = PoolSpec(
            num_layers=model.num_layers,
            num_pages=num_pages + 1,  # and the null page
            page_size=page,
            num_kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            dtype=dtype,
        )
        log.info(
            "context %d tokens; %d KV blocks of %d tokens (%.2f GiB, %d tokens); "
            "%d requests at once; %d prompt tokens a step; %d batch shapes",
            wanted_len,
            num_pages,
            page,
            pool.nbytes / GIB,
            num_pages * page,
            config.max_num_seqs,
            shapes.max_prefill_tokens,
            len(shapes.shapes),
        )
        free_host = free.host_bytes - (pool.nbytes if device.platform == "cpu" else 0)
        if (config.cache.host_cache_gib or 0.0) * GIB > free_host:
            raise CapacityError(
                f"a host tier of {config.cache.host_cache_gib:g} GiB does not fit: "
                f"{max(free_host, 0) / GIB:.1f} GiB are free beside the pool; "
                "lower host_cache_gib (--host-cache-gib)"
            )
        cache = CacheSettings.resolve(
            config.cache,
            block_bytes=pool.page_bytes,
            num_slots=num_pages,
            free_host_bytes=max(0, int(free_host * _HOST_SHARE)),
        )
        if cache.num_host_blocks:
            log.info(
                "host tier of %d KV blocks (%.2f GiB)",
                cache.num_host_blocks,
                cache.num_host_blocks * pool.page_bytes / GIB,
            )
        return cls(wanted_len, config.max_waiting, pool, shapes, cache)


def _batched_tokens(device: jax.Device) -> int:
    return _CPU_BATCHED_TOKENS if device.platform == "cpu" else _DEVICE_BATCHED_TOKENS


def _tile(page_size: int, budget_tokens: int) -> int:
    """Query tokens of the largest prefill tile, a multiple of the page."""
    return max(1, min(PREFILL_TILE, budget_tokens) // page_size) * page_size


def _pool_budget(free: FreeMemory, num_devices: int) -> int:
    """Bytes for the pool."""
    if free.device_bytes is not None:
        return int(free.device_bytes * _DEVICE_SHARE) * num_devices
    return min(int(free.host_bytes * _HOST_SHARE), _MAX_HOST_POOL_BYTES)
