"""Ablate ``kvflow-cost``: the gain of each of its terms on loops and sessions, by host memory.

    python -m experiments.terms --json FILE
    python -m experiments.terms --quick     # smaller workloads, two host sizes: under a minute

All runs are in virtual time. The size of the host tier decides what can be gained: where everything
fits, all policies are equal, and where much KV is recomputed, admission control (which runs
proceed) matters more than the eviction order.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from experiments.compare.ablation_policies import kvflow_chance, kvflow_depth
from experiments.compare.arms import ARMS, Arm
from experiments.compare.result_cache import ResultCache, ResultCacheError
from experiments.compare.run_cell import Setting, run_cell
from experiments.measure import arguments, interruptible, non_negative_int, write_json
from experiments.workloads.catalogue import catalogue_entry
from experiments.workloads.scale import Scale
from kvflow_jax.sim import machines

LOOPS = ("branching", "leader", "team", "coding")
HOST_SHARES = (0.0, 0.5, 4.0)  # host capacity over the capacity of the device pool
_COST = ARMS["kvflow-cost"]


def _cost_with(about: str, **changes: Any) -> Arm:
    return replace(_COST, about=about, cache=replace(_COST.cache, **changes))


ARMS_OF_TERMS: dict[str, Arm] = {
    "gpu-only": ARMS["gpu-only"],
    "hicache": ARMS["hicache"],
    "kvflow-guard": ARMS["kvflow-guard"],
    "kvflow-cost": _COST,
    "all branches": _cost_with(
        "treats every branch as taken", eviction=kvflow_depth, admission=True
    ),
    "all depths": _cost_with(
        "treats all blocks as equally costly to compute", eviction=kvflow_chance, admission=True
    ),
    "all runs": _cost_with("no admission control", admission=False),
    # Admission control matters more than the eviction order: the same time slices, other orders.
    "kvflow, turns": _cost_with("KVFlow's eviction order", eviction="kvflow", admission=True),
    "lru, turns": replace(
        ARMS["hicache"],
        about="LRU eviction",
        cache=replace(ARMS["hicache"].cache, admission=True),
    ),
    "oracle": ARMS["oracle"],
}


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--quick", action="store_true", help="one small workload, two host sizes")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of all random draws")
    options = parser.parse_args()
    try:
        return interruptible(lambda: run(options))
    except ResultCacheError as error:
        print(f"terms: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    scale = Scale(options.quick)
    names, shares = (LOOPS[:1], HOST_SHARES[:2]) if options.quick else (LOOPS, HOST_SHARES)
    asked = {"script": "terms", "quick": options.quick, "seed": options.seed}
    results_cache = ResultCache(options.json, asked)
    jobs = [(name, share, arm) for name in names for share in shares for arm in ARMS_OF_TERMS]
    for name, share, arm in tqdm(jobs, unit="run", disable=not sys.stderr.isatty()):
        key = f"{name} {share:g} {arm}"
        if key not in results_cache:
            figures = _figures(name, share, ARMS_OF_TERMS[arm], options.seed, scale)
            results_cache.put(key, figures)
    results = nested(results_cache.results)
    print(table(results), flush=True)
    write_json(results, options.json)
    results_cache.close()
    return 0


def _figures(name: str, host_share: float, arm: Arm, seed: int, scale: Scale) -> dict[str, Any]:
    entry = catalogue_entry(name)
    profile, shape = machines.machine(entry.machine), machines.shape(entry.model)
    pool = machines.pool_tokens(profile, shape)
    setting = Setting(shape, profile, pool, int(host_share * pool))
    return run_cell(setting, entry.build(shape.vocab_size, seed, scale), arm).figures


def nested(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{workload: {host share: {arm: figures}}}``."""
    tree: dict[str, Any] = {}
    for key, figures in results.items():
        name, share, arm = key.split(" ", 2)
        tree.setdefault(name, {}).setdefault(share, {})[arm] = figures
    return tree


def gain(arms: Mapping[str, Any], arm: str, key: str = "completion_mean_s") -> float:
    """Return the speedup of an arm over ``kvflow-guard``, KVFlow's order with its safeguards."""
    return float(arms["kvflow-guard"][key] / arms[arm][key])


def table(results: Mapping[str, Any]) -> str:
    """Return a Markdown table of mean completion of ``kvflow-guard`` over that of each arm."""
    lines = [
        f"| | host | {' | '.join(ARMS_OF_TERMS)} | makespan, s: kvflow-guard, kvflow-cost | "
        "ttft p99, s: kvflow-guard, kvflow-cost |",
        "|---" * (len(ARMS_OF_TERMS) + 4) + "|",
    ]
    for name, shares in results.items():
        for share, arms in shares.items():
            gains = " | ".join(f"{gain(arms, arm):.2f}x" for arm in ARMS_OF_TERMS)
            both = [arms[arm] for arm in ("kvflow-guard", "kvflow-cost")]
            spans = ", ".join(f"{figures['makespan_s']:.0f}" for figures in both)
            waits = ", ".join(f"{figures['ttft_p99_s']:.1f}" for figures in both)
            lines.append(f"| {name} | {share} | {gains} | {spans} | {waits} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
