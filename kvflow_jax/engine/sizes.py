"""Sizes of an engine: open settings of its configuration, derived from model and free memory."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from kvflow_jax.cache.pool import PoolSpec
from kvflow_jax.engine.cache_config import CacheSettings
from kvflow_jax.engine.config import EngineConfig
from kvflow_jax.errors import CapacityError, ConfigError
from kvflow_jax.models.config import ModelConfig
from kvflow_jax.models.memory import FreeMemory
from kvflow_jax.runtime.batch import BatchShapes
from kvflow_jax.speculation.config import NO_SPECULATION, SpeculativeConfig

log = logging.getLogger(__name__)

GIB = 1 << 30
# The share of free memory that the pool takes. Host memory is shared with other programs. Device
# memory is not, but a step's temporary arrays need some of it.
_HOST_SHARE, _DEVICE_SHARE = 0.25, 0.85
_MAX_HOST_POOL_BYTES = 4 * GIB
# The number of pages is part of every program's shape, and free memory differs from start to start.
# Rounded to a few bits, the default pool does not, so that later starts find their programs
# compiled. Free device memory differs less: with more bits at most 3% of it are lost.
_HOST_POOL_BITS, _DEVICE_POOL_BITS = 2, 6
# Free memory near an edge of that rounding would still give two sizes in turn, so the size of the
# last start is taken again if it is between these parts of the share.
_HOST_KEPT, _DEVICE_KEPT = (0.5, 1.25), (0.9, 1.02)
PREFILL_TILE = 128
# Requests that decode beside a prompt wait for its step. In float32 a CPU prefills as fast in steps
# of 256 tokens as of 512; in bfloat16, which takes a third of the time, 512 are faster
# (experiments/NOTES.md). An accelerator needs more tokens to be busy.
_CPU_BATCHED_TOKENS, _CPU_16_BIT_BATCHED_TOKENS, _DEVICE_BATCHED_TOKENS = 256, 512, 2048


# Decode rows of a server of few requests, so that they can have drafts: on a CPU a step of 16 rows
# reads the weights as often as one of a single row, and its products cost little more.
_MIN_DRAFT_ROWS = 16


@dataclass(frozen=True)
class EngineSizes:
    """An ``EngineConfig`` without open settings, for one model and device."""

    max_model_len: int
    max_waiting: int
    pool: PoolSpec
    shapes: BatchShapes
    cache: CacheSettings = CacheSettings()
    speculation: SpeculativeConfig = NO_SPECULATION
    step_timeout_s: float = 20.0

    @classmethod
    def resolve(
        cls,
        config: EngineConfig,
        model: ModelConfig,
        dtype: str,
        platform: str,
        free: FreeMemory,
        *,
        num_devices: int = 1,
        last_num_pages: int | None = None,
    ) -> EngineSizes:
        """Derive all sizes from the model and the free memory.

        Args:
            dtype: dtype of the KV cache.
            platform: of the device, ``cpu``, ``gpu`` or ``tpu``.
            free: memory that is free once the weights are loaded.
            num_devices: devices with this free memory that share the model and the pool.
            last_num_pages: default pool of the last start, without the null page; None: unknown.

        Raises:
            CapacityError: the pool, one request of ``max_model_len`` tokens, or the host tier, does
                not fit; the message has the missing or the free bytes.
            ConfigError: ``max_model_len`` is longer than the model's context.
        """
        page = config.page_size
        one_page = PoolSpec(
            num_layers=model.num_layers,
            num_pages=1,
            page_size=page,
            num_kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            dtype=dtype,
        )
        max_model_len = min(config.max_model_len or model.max_model_len, model.max_model_len)
        if config.max_model_len is not None and config.max_model_len > model.max_model_len:
            raise ConfigError(
                f"max_model_len {config.max_model_len} exceeds the model's context of "
                f"{model.max_model_len} tokens; lower it (--max-model-len)"
            )
        pages_per_seq = -(-max_model_len // page)
        # Pages beyond what all running requests can use at full length still serve the cache.
        if config.num_pages is not None:
            num_pages = config.num_pages
        elif config.pool_gib is not None:
            num_pages = int(config.pool_gib * GIB) // one_page.page_bytes - 1
        else:
            num_pages = _default_num_pages(free, num_devices, one_page.page_bytes)
            if last_num_pages is not None and min(num_pages, pages_per_seq) <= last_num_pages:
                share = _share_num_pages(free, num_devices, one_page.page_bytes)
                low, high = _HOST_KEPT if free.device_bytes is None else _DEVICE_KEPT
                if low * share <= last_num_pages <= high * share:
                    num_pages = last_num_pages
        _check_pool(num_pages * one_page.page_bytes, free, num_devices)
        if num_pages < pages_per_seq:
            if config.max_model_len is not None or num_pages < 2:
                missing_bytes = (pages_per_seq - max(num_pages, 0)) * one_page.page_bytes
                raise CapacityError(
                    f"one request of {max_model_len} tokens needs {pages_per_seq} KV blocks, the "
                    f"pool has {max(num_pages, 0)}: {missing_bytes / GIB:.2f} GiB more are needed; "
                    "enlarge the pool (pool_gib, --pool-gib) or lower max_model_len "
                    "(--max-model-len)"
                )
            max_model_len = num_pages * page
        # Tiles are aligned to blocks, so that a partly computed prompt ends with a whole block.
        budget_tokens = config.max_num_batched_tokens or _batched_tokens(platform, dtype)
        tile = _tile(page, budget_tokens)
        speculation = SpeculativeConfig.of(config.speculative_config)
        shapes = BatchShapes.plan(
            max_num_seqs=config.max_num_seqs,
            max_prefill_tokens=budget_tokens,
            tile=tile,
            page_size=page,
            pages_per_seq=-(-max_model_len // page),
            deterministic=config.deterministic,
            min_decode_rows=min(_MIN_DRAFT_ROWS, 1 + speculation.num_speculative_tokens),
        )
        pool = PoolSpec(
            num_layers=model.num_layers,
            num_pages=num_pages + 1,  # with the null page
            page_size=page,
            num_kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            dtype=dtype,
            as_bits=platform == "cpu" and dtype != "float32",
        )
        free_host = free.host_bytes - (pool.nbytes if platform == "cpu" else 0)
        if (config.cache.host_cache_gib or 0.0) * GIB > free_host:
            raise CapacityError(
                f"a host tier of {config.cache.host_cache_gib:g} GiB does not fit: "
                f"{max(free_host, 0) / GIB:.1f} GiB of host memory are free; "
                "lower host_cache_gib (--host-cache-gib)"
            )
        cache = CacheSettings.resolve(
            config.cache,
            block_bytes=pool.page_bytes,
            num_pages=num_pages,
            free_host_bytes=max(0, int(free_host * _HOST_SHARE)),
        )
        return cls(
            max_model_len,
            config.max_waiting,
            pool,
            shapes,
            cache,
            speculation,
            config.step_timeout_s,
        )

    def log(self, config: EngineConfig, model: ModelConfig) -> None:
        """Log the sizes, and warn if the pool is smaller than the model's context.

        Args:
            config, model: the arguments of ``resolve``.
        """
        pool, shapes, num_host_blocks = self.pool, self.shapes, self.cache.num_host_blocks
        num_tokens = (pool.num_pages - 1) * pool.page_size
        if config.max_model_len is None and self.max_model_len < model.max_model_len:
            log.warning("the pool holds %d tokens: max_model_len is cut to that", num_tokens)
        log.info(
            "max_model_len %d tokens; %d KV blocks of %d tokens (%.2f GiB, %d tokens); "
            "at most %d running requests and %d prompt tokens per step; %d batch shapes",
            self.max_model_len,
            pool.num_pages - 1,
            pool.page_size,
            pool.nbytes / GIB,
            num_tokens,
            shapes.num_seq_slots,
            shapes.max_prefill_tokens,
            len(shapes.shapes),
        )
        if num_host_blocks:
            log.info(
                "host tier of %d KV blocks (%.2f GiB)",
                num_host_blocks,
                num_host_blocks * pool.page_bytes / GIB,
            )


def _batched_tokens(platform: str, dtype: str) -> int:
    """Return the default number of prompt tokens per step."""
    if platform != "cpu":
        return _DEVICE_BATCHED_TOKENS
    return _CPU_BATCHED_TOKENS if dtype == "float32" else _CPU_16_BIT_BATCHED_TOKENS


def _tile(page_size: int, budget_tokens: int) -> int:
    """Return the query tokens of the largest prefill tile, a multiple of the page size."""
    return max(1, min(PREFILL_TILE, budget_tokens) // page_size) * page_size


def _default_num_pages(free: FreeMemory, num_devices: int, page_bytes: int) -> int:
    """Return the default number of pages, without the null page; free memory may fit none."""
    num_pages = _share_num_pages(free, num_devices, page_bytes)
    if free.device_bytes is not None:
        return _round_down(num_pages, _DEVICE_POOL_BITS)
    if num_pages == _MAX_HOST_POOL_BYTES // page_bytes - 1:
        return num_pages
    return _round_down(num_pages, _HOST_POOL_BITS)


def _share_num_pages(free: FreeMemory, num_devices: int, page_bytes: int) -> int:
    """Return the pages of the share of free memory that the pool takes, without the null page."""
    if free.device_bytes is not None:
        pool_bytes = int(free.device_bytes * _DEVICE_SHARE) * num_devices
    else:
        pool_bytes = min(int(free.host_bytes * _HOST_SHARE), _MAX_HOST_POOL_BYTES)
    return pool_bytes // page_bytes - 1


def _round_down(number: int, num_bits: int) -> int:
    """Return the largest number up to ``number`` with at most ``num_bits`` significant bits."""
    shift = max(0, number.bit_length() - num_bits)
    return number >> shift << shift


def _check_pool(pool_bytes: int, free: FreeMemory, num_devices: int) -> None:
    """Raise CapacityError if the pool is larger than the memory that is free for it."""
    on_device = free.device_bytes is not None
    free_bytes = free.host_bytes if free.device_bytes is None else free.device_bytes * num_devices
    if pool_bytes > free_bytes:
        raise CapacityError(
            f"a KV pool of {pool_bytes / GIB:.1f} GiB does not fit: beside the weights "
            f"{max(free_bytes, 0) / GIB:.1f} GiB of {'device' if on_device else 'host'} memory are "
            "free; lower pool_gib (--pool-gib) or num_pages, or leave it out"
        )
