"""Engine statistics, collected from cache, scheduler and transfer manager."""

from __future__ import annotations

from typing import Any

from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.cache.transfer import Direction
from kvflow_jax.control.transfer_manager import TransferManager
from kvflow_jax.engine.prefill_progress import prefill_progress
from kvflow_jax.engine.scheduler import Scheduler
from kvflow_jax.requests.outputs import EngineStats


def counters(cache: PrefixCache, scheduler: Scheduler, before: EngineStats) -> EngineStats:
    """Return the monotonic counters.

    Args:
        before: counters of the caches and schedulers that these have replaced; they are added.
    """
    return EngineStats(**_counters(cache, scheduler, before))


def snapshot(
    cache: PrefixCache,
    scheduler: Scheduler,
    transfer_manager: TransferManager,
    before: EngineStats,
    **of_engine: Any,
) -> EngineStats:
    """Return the current gauges and the counters.

    Args:
        before: see ``counters``.
        of_engine: fields that the engine itself counts.
    """
    load = transfer_manager.links[Direction.LOAD]
    offload = transfer_manager.links[Direction.OFFLOAD]
    # One construction: each step makes a snapshot.
    return EngineStats(
        **_counters(cache, scheduler, before),
        num_running=len(scheduler.running),
        num_waiting=len(scheduler.waiting),
        num_deferred=min(scheduler.num_deferred, len(scheduler.waiting)),
        prefill=prefill_progress(scheduler.running),
        num_blocks=cache.num_pages,
        num_blocks_leased=cache.num_leased,
        num_blocks_cached=cache.num_indexed,
        num_blocks_host=cache.tiers.num_host_blocks,
        max_blocks_host=cache.tiers.max_host_blocks,
        load_bytes=load.num_bytes,
        load_s=load.busy_s,
        save_bytes=offload.num_bytes,
        save_s=offload.busy_s,
        num_failed_transfers=load.num_failed + offload.num_failed,
        **of_engine,
    )


def _counters(cache: PrefixCache, scheduler: Scheduler, before: EngineStats) -> dict[str, Any]:
    """Return the fields of ``counters`` by name."""
    tiers, running = cache.tiers.counters, scheduler.running_requests
    return {
        "num_preemptions": before.num_preemptions + scheduler.num_preemptions,
        "num_evicted_blocks": before.num_evicted_blocks + tiers.num_evicted,
        "num_backed_up_blocks": before.num_backed_up_blocks + tiers.num_offloaded,
        "num_loaded_blocks": before.num_loaded_blocks + tiers.num_loaded,
        "num_prefetched_blocks": before.num_prefetched_blocks + tiers.num_prefetched,
        "num_useful_blocks": before.num_useful_blocks + tiers.num_useful,
        "num_late_blocks": before.num_late_blocks + tiers.num_late,
        "num_wasted_blocks": before.num_wasted_blocks + tiers.num_wasted,
        "prompt_tokens": before.prompt_tokens + running.num_prompt_tokens,
        "cached_prompt_tokens": before.cached_prompt_tokens + running.num_cached_tokens,
        "block_ages": before.block_ages.plus(cache.tiers.ages),
        "host_prompt_tokens": before.host_prompt_tokens + running.num_host_tokens,
    }
