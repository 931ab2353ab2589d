"""The arms that are compared, and the figures of one that has played a workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.driver import CallRecord
from kvflow_jax.cache_settings import CacheConfig
from kvflow_jax.outputs import EngineStats

# The paper's three: least recently used blocks go; so over two tiers; and what it proposes.
ARMS: Mapping[str, CacheConfig] = {
    "gpu-only": CacheConfig(mode="gpu-only"),
    "hicache": CacheConfig(mode="hicache"),
    "kvflow": CacheConfig(mode="kvflow"),
}


def figures(
    records: Sequence[CallRecord], before: EngineStats, after: EngineStats
) -> dict[str, Any]:
    """Of the calls after round 0, while the engine's counters went from ``before`` to ``after``.

    Times are seconds; recomputed tokens are those of fixed prefixes, and per call.
    """
    warm = [record for record in records if record.round]
    latency = np.array([record.latency_s for record in warm])
    ttft = np.array([record.ttft_s for record in warm])
    recomputed = np.array([record.num_fixed_recomputed for record in warm])
    makespan_s = max(r.end_s for r in warm) - min(r.start_s for r in warm)
    stall_s = after.stall_s - before.stall_s
    num_prompt = sum(record.num_prompt for record in warm)
    num_cached = sum(record.num_cached for record in warm)
    num_host = sum(record.num_host for record in warm)
    return {
        "calls": len(warm),
        "makespan_s": makespan_s,
        "latency_mean_s": float(latency.mean()),
        "latency_p99_s": float(np.percentile(latency, 99)),
        "ttft_mean_s": float(ttft.mean()),
        "ttft_p99_s": float(np.percentile(ttft, 99)),
        "fixed_recomputed_max": int(recomputed.max()),
        "fixed_recomputed_mean": float(recomputed.mean()),
        "stall_s": stall_s,
        "stall_share": stall_s / makespan_s,
        "tokens_from_device": num_cached - num_host,
        "tokens_from_host": num_host,
        "tokens_recomputed": num_prompt - num_cached,
        "prefetch_useful_blocks": int(after.num_useful_blocks - before.num_useful_blocks),
        "prefetch_late_blocks": int(after.num_late_blocks - before.num_late_blocks),
        "prefetch_wasted_blocks": int(after.num_wasted_blocks - before.num_wasted_blocks),
        "load_bytes": after.load_bytes - before.load_bytes,
        "save_bytes": after.save_bytes - before.save_bytes,
        "load_bytes_per_s": _rate(
            after.load_bytes - before.load_bytes, after.load_s - before.load_s
        ),
        "preemptions": after.num_preemptions - before.num_preemptions,
    }


def speedups(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """How many times as fast as gpu-only each arm has played the workload."""
    base = arms["gpu-only"]["makespan_s"]
    return {name: base / arm["makespan_s"] for name, arm in arms.items()}


def _rate(num_bytes: int, seconds: float) -> float:
    return num_bytes / seconds if seconds else 0.0
