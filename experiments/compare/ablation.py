"""What each part of ``kvflow-cost`` brings, and when: loops and coding sessions, by host memory.

    python -m experiments.terms --json FILE

In virtual time. How much host memory there is decides what there is to gain: where everything fits,
every policy is as good, and where much has to be computed again, which runs go on matters more than
what is evicted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from experiments.compare.arms import ARMS, Arm
from experiments.compare.result_cache import ResultCache, ResultCacheError
from experiments.compare.run_cell import Setting, play
from experiments.measure import arguments, interruptible, whole, write_json
from experiments.workloads.catalogue import workload
from experiments.workloads.scale import Scale
from kvflow_jax.sim import machines

LOOPS = ("branching", "leader", "team", "coding")
HOST_SHARES = (0.0, 0.5, 4.0)  # of the device's room for KV
_COST = ARMS["kvflow-cost"]


def _cost_with(about: str, **changes: Any) -> Arm:
    return replace(_COST, about=about, cache=replace(_COST.cache, **changes))


ARMS_OF_TERMS: dict[str, Arm] = {
    "gpu-only": ARMS["gpu-only"],
    "hicache": ARMS["hicache"],
    "kvflow-guard": ARMS["kvflow-guard"],
    "kvflow-cost": _COST,
    "all branches": _cost_with(
        "as if every branch were taken", eviction="kvflow-depth", admission=True
    ),
    "all depths": _cost_with(
        "as if every block cost the same", eviction="kvflow-chance", admission=True
    ),
    "all runs": _cost_with("no run is held back", admission=False),
    # Who takes turns matters more than what goes: the same turns under other orders.
    "kvflow, turns": _cost_with("KVFlow's order", eviction="kvflow", admission=True),
    "lru, turns": replace(
        ARMS["hicache"],
        about="least recently used goes",
        cache=replace(ARMS["hicache"].cache, admission=True),
    ),
    "oracle": ARMS["oracle"],
}


def main() -> int:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller workloads")
    parser.add_argument("--seed", type=whole, default=0, help="of all that is drawn")
    options = parser.parse_args()
    try:
        return interruptible(lambda: run(options))
    except ResultCacheError as error:
        print(f"terms: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    scale = Scale(options.quick)
    asked = {"script": "terms", "quick": options.quick, "seed": options.seed}
    store = ResultCache(options.json, asked)
    jobs = [(name, share, arm) for name in LOOPS for share in HOST_SHARES for arm in ARMS_OF_TERMS]
    for name, share, arm in tqdm(jobs, unit="run", disable=not sys.stderr.isatty()):
        key = f"{name} {share:g} {arm}"
        if key not in store:
            store.put(key, _figures(name, share, ARMS_OF_TERMS[arm], options.seed, scale))
    results = nested(store.results)
    print(table(results), flush=True)
    write_json(results, options.json)
    store.close()
    return 0


def _figures(name: str, host_share: float, arm: Arm, seed: int, scale: Scale) -> dict[str, Any]:
    entry = workload(name)
    profile, shape = machines.machine(entry.machine), machines.shape(entry.model)
    pool = machines.pool_tokens(profile, shape)
    setting = Setting(shape, profile, pool, int(host_share * pool))
    return play(setting, entry.build(shape.vocab_size, seed, scale), arm).figures


def nested(results: Mapping[str, Any]) -> dict[str, Any]:
    """``{workload: {host share: {arm: figures}}}``."""
    tree: dict[str, Any] = {}
    for key, figures in results.items():
        name, share, arm = key.split(" ", 2)
        tree.setdefault(name, {}).setdefault(share, {})[arm] = figures
    return tree


def gain(arms: Mapping[str, Any], arm: str, key: str = "completion_mean_s") -> float:
    """How many times as fast as KVFlow's own order, with the guard, an arm is."""
    return float(arms["kvflow-guard"][key] / arms[arm][key])


def table(results: Mapping[str, Any]) -> str:
    """Mean completion over that of ``kvflow-guard``; Markdown."""
    lines = [
        f"| | host | {' | '.join(ARMS_OF_TERMS)} | makespan, s: kvflow-guard, kvflow-cost | "
        "ttft p99, s: kvflow-guard, kvflow-cost |",
        "|---" * (len(ARMS_OF_TERMS) + 4) + "|",
    ]
    for name, shares in results.items():
        for share, arms in shares.items():
            gains = " | ".join(f"{gain(arms, arm):.2f}x" for arm in ARMS_OF_TERMS)
            both = [arms[arm] for arm in ("kvflow-guard", "kvflow-cost")]
            spans = ", ".join(f"{one['makespan_s']:.0f}" for one in both)
            waits = ", ".join(f"{one['ttft_p99_s']:.1f}" for one in both)
            lines.append(f"| {name} | {share} | {gains} | {spans} | {waits} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
