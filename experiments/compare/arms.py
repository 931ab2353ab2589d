"""The arms that are compared, and the figures of one that has played a workload."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.compare.driver import CallRecord
from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.requests.outputs import EngineStats
from kvflow_jax.sim.machines import UnknownNameError


@dataclass(frozen=True)
class Arm:
    """A way to cache.

    Attributes:
        is_unlimited: whether the device holds all there is.
        is_oracle: whether what goes is decided by when each block will be read next, as recorded
            from the arm's own run before.
    """

    about: str
    cache: CacheConfig
    is_unlimited: bool = False
    is_oracle: bool = False


ARMS: dict[str, Arm] = {
    "gpu-only": Arm("least recently used goes, no host tier", CacheConfig(mode="gpu-only")),
    "hicache": Arm(
        "least recently used over device and host, loaded when asked for",
        CacheConfig(mode="hicache"),
    ),
    "kvflow-evict": Arm(
        "KVFlow's eviction over device and host, loaded when asked for",
        CacheConfig(mode="kvflow", prefetch=False, guard=False),
    ),
    "kvflow": Arm("and what runs next is prefetched", CacheConfig(mode="kvflow", guard=False)),
    "kvflow-guard": Arm(
        "and what would take longer to load is computed", CacheConfig(mode="kvflow", guard=True)
    ),
    "kvflow-cost": Arm(
        "and least expected loss goes first; runs take turns while the cache thrashes",
        CacheConfig(mode="kvflow", eviction="kvflow-cost", guard=True),
    ),
    "oracle": Arm(
        "what is read last goes first, as runs before recorded it; KVFlow's prefetch",
        CacheConfig(mode="kvflow", guard=True),
        is_oracle=True,
    ),
    "unlimited": Arm(
        "everything stays on the device", CacheConfig(mode="gpu-only"), is_unlimited=True
    ),
}
# The paper's three.
PAPER_ARMS = ("gpu-only", "hicache", "kvflow")


def arms_named(names: str) -> list[str]:
    """Names from a comma-separated list, or ``all``. Raises UnknownNameError."""
    if names == "all":
        return list(ARMS)
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in ARMS:
            raise UnknownNameError("arm", name, ["all", *ARMS])
    return wanted


def figures(
    records: Sequence[CallRecord], before: EngineStats, after: EngineStats
) -> dict[str, Any]:
    """Of the calls after round 0, while the engine's counters went from ``before`` to ``after``.

    Times are seconds; a completion is that of a run, from its arrival, round 0 included, to its
    end. Tokens recomputed are those of prompts that were computed, again after a preemption
    included; those of fixed prefixes are per call.
    """
    warm = [record for record in records if record.round]
    latency = np.array([record.latency_s for record in warm])
    ttft = np.array([record.ttft_s for record in warm])
    recomputed = np.array([record.num_fixed_recomputed for record in warm])
    spans = defaultdict[tuple[str, str], list[CallRecord]](list)
    for record in records:
        spans[record.client, record.workflow_id].append(record)
    completion = np.array(
        [max(r.end_s for r in run) - min(r.start_s for r in run) for run in spans.values()]
    )
    makespan_s = max(r.end_s for r in warm) - min(r.start_s for r in warm)
    stall_s = after.stall_s - before.stall_s
    num_cached = sum(record.num_cached for record in warm)
    num_host = sum(record.num_host for record in warm)
    return {
        "calls": len(warm),
        "makespan_s": makespan_s,
        "completion_mean_s": float(completion.mean()),
        "completions_s": [round(float(one), 4) for one in np.sort(completion)],
        "completion_p50_s": float(np.median(completion)),
        "completion_p99_s": float(np.percentile(completion, 99)),
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
        "tokens_recomputed": sum(record.num_computed for record in warm),
        "prefetch_useful_blocks": int(after.num_useful_blocks - before.num_useful_blocks),
        "prefetch_late_blocks": int(after.num_late_blocks - before.num_late_blocks),
        "prefetch_wasted_blocks": int(after.num_wasted_blocks - before.num_wasted_blocks),
        "evicted_blocks": int(after.num_evicted_blocks - before.num_evicted_blocks),
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


def gap_closed(arms: Mapping[str, Mapping[str, Any]], arm: str, key: str) -> float | None:
    """Share of the time that an arm saves, of what the fastest in the same memory saves.

    Both against gpu-only. The oracle bounds eviction, not speed, so another may be the fastest.
    None where that is below 5% of gpu-only's time, or gpu-only or the oracle is not there.
    """
    if "gpu-only" not in arms or "oracle" not in arms:
        return None
    base = arms["gpu-only"][key]
    best = min(
        one[key] for name, one in arms.items() if name not in ARMS or not ARMS[name].is_unlimited
    )
    if base - best < 0.05 * base:
        return None
    return float((base - arms[arm][key]) / (base - best))


def _rate(num_bytes: int, seconds: float) -> float:
    return num_bytes / seconds if seconds else 0.0
