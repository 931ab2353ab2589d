"""The arms (cache configurations) that are compared, and the figures of a finished run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.compare.call_hints import HintsOf, declared
from experiments.compare.driver import CallRecord
from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.requests.outputs import EngineStats
from kvflow_jax.sim.machines import UnknownNameError


@dataclass(frozen=True)
class Arm:
    """A cache configuration.

    Attributes:
        about: description, for reports.
        is_unlimited: True if the device pool holds everything.
        is_oracle: True if eviction follows the next read of each block, as recorded in the arm's
            own previous run.
        hints_of: what requests say of their agents, runs and sessions.
    """

    about: str
    cache: CacheConfig
    is_unlimited: bool = False
    is_oracle: bool = False
    hints_of: HintsOf = declared


ARMS: dict[str, Arm] = {
    "gpu-only": Arm("LRU eviction, no host tier", CacheConfig(mode="gpu-only")),
    "hicache": Arm(
        "LRU over device and host, loaded on demand",
        CacheConfig(mode="hicache"),
    ),
    "kvflow-evict": Arm(
        "KVFlow's eviction over device and host, loaded on demand",
        CacheConfig(mode="kvflow", prefetch=False, guard=False),
    ),
    "kvflow": Arm("kvflow-evict, and prefetch", CacheConfig(mode="kvflow", guard=False)),
    "kvflow-guard": Arm("kvflow with its safeguards", CacheConfig(mode="kvflow", guard=True)),
    "kvflow-cost": Arm(
        "kvflow-guard, evicts the least expected loss first; admission control against thrashing",
        CacheConfig(mode="kvflow", eviction="kvflow-cost", guard=True),
    ),
    "oracle": Arm(
        "evicts what is read last, by the previous run's record; KVFlow's prefetch",
        CacheConfig(mode="kvflow", guard=True),
        is_oracle=True,
    ),
    "unlimited": Arm("the pool holds everything", CacheConfig(mode="gpu-only"), is_unlimited=True),
}
# The three arms of the paper.
PAPER_ARMS = ("gpu-only", "hicache", "kvflow")


def arms_named(names: str) -> list[str]:
    """Parse a comma-separated list of arms, or ``all``. Raises UnknownNameError."""
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
    """Return the figures of a run, of the calls after round 0 unless noted.

    Times are seconds. A completion time is that of a workflow run, from its arrival to its end,
    round 0 included. Recomputed tokens are prompt tokens that were computed, including those
    computed again after a preemption; those of fixed prefixes are per call.

    Args:
        before, after: the engine's counters at the first call after round 0, and at the end.
    """
    warm = [record for record in records if record.round]
    latency = np.array([record.latency_s for record in warm])
    ttft = np.array([record.ttft_s for record in warm])
    recomputed = np.array([record.num_fixed_recomputed for record in warm])
    spans = defaultdict[tuple[str, str], list[CallRecord]](list)
    for record in records:
        spans[record.tenant, record.workflow_id].append(record)
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
        "completions_s": [round(float(seconds), 4) for seconds in np.sort(completion)],
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
    """Return the speedup of each arm over gpu-only, by makespan."""
    base = arms["gpu-only"]["makespan_s"]
    return {name: base / arm["makespan_s"] for name, arm in arms.items()}


def gap_closed(arms: Mapping[str, Mapping[str, Any]], arm: str, key: str) -> float | None:
    """Return the time that an arm saves over the time that the fastest arm saves.

    Both are savings against gpu-only, and the fastest is one with the same memory. The oracle
    bounds eviction, not speed, so another arm may be the fastest. Return None if the fastest arm
    saves less than 5% of gpu-only's time, or if gpu-only or the oracle is missing.
    """
    if "gpu-only" not in arms or "oracle" not in arms:
        return None
    base = arms["gpu-only"][key]
    best = min(
        figures[key]
        for name, figures in arms.items()
        if name not in ARMS or not ARMS[name].is_unlimited
    )
    if base - best < 0.05 * base:
        return None
    return float((base - arms[arm][key]) / (base - best))


def _rate(num_bytes: int, seconds: float) -> float:
    return num_bytes / seconds if seconds else 0.0
