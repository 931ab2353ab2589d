"""From a loaded model to a running engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import jax
from jax.sharding import PartitionSpec

from kvflow_jax.batch import BatchShape
from kvflow_jax.cache.transfer import DeviceTransfers, Direction, measure_bandwidth
from kvflow_jax.config import EngineConfig, EngineSizes
from kvflow_jax.engine import Engine
from kvflow_jax.models.loading import LoadedModel
from kvflow_jax.models.sharding import AXIS
from kvflow_jax.protocols import NoTransfers, Transfers, WallClock
from kvflow_jax.runner import ModelRunner
from kvflow_jax.trace import ChromeTrace, NoTrace

log = logging.getLogger(__name__)


def use_compilation_cache(cache_dir: Path) -> None:
    """Keep compiled programs under ``cache_dir``, so that later starts only load them.

    Call before the first compilation. A folder the user has set in JAX's own configuration stays.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def build_engine(loaded: LoadedModel, config: EngineConfig, *, progress: bool = True) -> Engine:
    """Allocate the pool, compile every batch shape, and give back an engine that is ready.

    Raises:
        CapacityError: not even one request fits the memory there is.
        ConfigError: sizes that contradict the model.
    """
    tracer = ChromeTrace(config.trace) if config.trace is not None else NoTrace()
    shards = loaded.shards
    device: jax.Device = min(next(iter(loaded.params.values())).devices(), key=lambda d: d.id)
    num = 1 if shards is None else shards.num
    sizes = EngineSizes.resolve(config, loaded.config, loaded.model.dtype, device, num_devices=num)
    flat: jax.sharding.Sharding = jax.sharding.SingleDeviceSharding(device)
    flat = flat if shards is None else shards.where(PartitionSpec(AXIS))
    bandwidth = _measured_link(flat, sizes)
    if bandwidth is None:
        sizes = replace(sizes, cache=replace(sizes.cache, num_host_blocks=0, prefetches=False))
    extent_sizes = sizes.cache.extent_sizes if bandwidth is not None else ()
    runner = ModelRunner(
        loaded.model,
        loaded.params,
        sizes.pool,
        sizes.shapes,
        extent_sizes=extent_sizes,
        shards=shards,
    )
    log.info("compiling %d batch shapes, or loading them compiled", len(sizes.shapes.shapes))
    start_s = time.monotonic()
    runner.warm_up(_progress_bar if progress else iter)
    log.info("%d programs ready in %.1f s", len(sizes.shapes.shapes), time.monotonic() - start_s)
    tokenizer, clock = loaded.tokenizer, WallClock()
    transfers: Transfers = NoTransfers()
    if bandwidth is not None:
        ratio = config.cache.link_ratio
        pace = ratio * runner.prefill_s_per_token() / token_bytes(sizes) if ratio else 0.0
        transfers = DeviceTransfers(
            runner.blocks_lie, bandwidth, pace_s_per_byte=pace, now=clock.now
        )
        if pace:
            log.info("the host link is emulated: %.3g GB/s", 1e-9 / pace)
    return Engine(
        sizes,
        runner,
        clock,
        transfers,
        tokenizer=tokenizer,
        vocab_size=loaded.config.vocab_size,
        eos_token_ids=tokenizer.eos_token_ids if tokenizer else loaded.config.eos_token_ids,
        model_name=loaded.name,
        seed=config.seed,
        tracer=tracer,
    )


def token_bytes(sizes: EngineSizes) -> float:
    """KV bytes of a token."""
    return sizes.pool.page_bytes / sizes.pool.page_size


def _measured_link(
    here: jax.sharding.Sharding, sizes: EngineSizes
) -> dict[Direction, float] | None:
    """Bytes per second to and from the host; None where there is to be no host tier."""
    if not sizes.cache.num_host_blocks:
        return None
    try:
        rates = measure_bandwidth(here, sizes.cache.extent_sizes[-1] * sizes.pool.page_bytes)
    except NotImplementedError as error:
        log.warning("no host tier: %s", error)
        return None
    log.info(
        "host link: %.3g GB/s to the device, %.3g GB/s back",
        rates[Direction.LOAD] / 1e9,
        rates[Direction.SAVE] / 1e9,
    )
    return rates


def _progress_bar(shapes: Iterable[BatchShape]) -> Iterator[BatchShape]:
    from tqdm.auto import tqdm

    yield from tqdm(shapes, desc="Compiling", unit="program")
