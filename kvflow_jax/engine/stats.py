"""What the engine's parts have counted, as one snapshot."""

from __future__ import annotations

from dataclasses import replace

from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.cache.transfer import Direction
from kvflow_jax.control.transfer_manager import TransferManager
from kvflow_jax.engine.scheduler import Scheduler
from kvflow_jax.requests.outputs import EngineStats


def counters(cache: PrefixCache, scheduler: Scheduler, past: EngineStats) -> EngineStats:
    """What only grows, on top of what caches and schedulers before these had counted."""
    residency = cache.residency
    return EngineStats(
        num_preemptions=past.num_preemptions + scheduler.num_preemptions,
        num_evicted_blocks=past.num_evicted_blocks + residency.num_evicted,
        num_backed_up_blocks=past.num_backed_up_blocks + residency.num_offloaded,
        num_loaded_blocks=past.num_loaded_blocks + residency.num_loaded,
        num_prefetched_blocks=past.num_prefetched_blocks + residency.num_prefetched,
        num_useful_blocks=past.num_useful_blocks + residency.num_useful,
        num_late_blocks=past.num_late_blocks + residency.num_late,
        num_wasted_blocks=past.num_wasted_blocks + residency.num_wasted,
        prompt_tokens=past.prompt_tokens + scheduler.num_prompt_tokens,
        cached_prompt_tokens=past.cached_prompt_tokens + scheduler.num_cached_tokens,
        host_prompt_tokens=past.host_prompt_tokens + scheduler.num_host_tokens,
    )


def snapshot(
    cache: PrefixCache, scheduler: Scheduler, transfer_manager: TransferManager, past: EngineStats
) -> EngineStats:
    """How things stand, and the counters."""
    load, save = transfer_manager.links[Direction.LOAD], transfer_manager.links[Direction.OFFLOAD]
    return replace(
        counters(cache, scheduler, past),
        num_running=len(scheduler.running),
        num_waiting=len(scheduler.waiting),
        num_blocks=cache.table.num_pages,
        num_blocks_leased=cache.num_leased,
        num_blocks_cached=cache.num_indexed,
        num_blocks_host=cache.residency.host.num_blocks,
        max_blocks_host=cache.residency.host.max_blocks,
        load_bytes=load.num_bytes,
        load_s=load.busy_s,
        save_bytes=save.num_bytes,
        save_s=save.busy_s,
        num_failed_transfers=load.num_failed + save.num_failed,
    )
