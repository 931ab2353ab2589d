"""What each part of ``kvflow-cost`` brings, and when: loops and coding sessions, by host memory.

    python -m experiments.terms --json FILE

In virtual time. How much host memory there is decides what there is to gain: where everything fits,
every policy is as good, and where much has to be computed again, which runs go on matters more than
what is evicted.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from experiments.arms import ARMS, Arm
from experiments.measure import arguments, write_json
from experiments.play import Setting, play
from experiments.sim import machines
from experiments.store import Store
from experiments.workloads.catalogue import workload

LOOPS = ("branching", "leader", "team", "coding")
HOST_SHARES = (0.0, 0.5, 4.0)  # of the device's room for KV
_COST = ARMS["kvflow-cost"]


def _cost_with(about: str, **changes: Any) -> Arm:
    return replace(_COST, about=about, cache=replace(_COST.cache, **changes))


ARMS_OF_TERMS: dict[str, Arm] = {
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
    "oracle": ARMS["oracle"],
}


def main() -> int:
    options = arguments(__doc__).parse_args()
    store = Store(options.json, {"script": "terms"})
    jobs = [(name, share, arm) for name in LOOPS for share in HOST_SHARES for arm in ARMS_OF_TERMS]
    for name, share, arm in tqdm(jobs, unit="run", disable=not sys.stderr.isatty()):
        key = f"{name} {share:g} {arm}"
        if key not in store:
            store.put(key, _figures(name, share, ARMS_OF_TERMS[arm]))
    results = nested(store.results)
    print(table(results), flush=True)
    write_json(results, options.json)
    store.close()
    return 0


def _figures(name: str, host_share: float, arm: Arm) -> dict[str, Any]:
    entry = workload(name)
    profile, shape = machines.machine(entry.machine), machines.shape(entry.model)
    pool = machines.pool_tokens(profile, shape)
    setting = Setting(shape, profile, pool, int(host_share * pool))
    return play(setting, entry.build(shape.vocab_size, 0, False), arm).figures


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
        f"| | host | {' | '.join(ARMS_OF_TERMS)} | ttft p99, s: kvflow-guard, kvflow-cost |",
        "|---" * (len(ARMS_OF_TERMS) + 3) + "|",
    ]
    for name, shares in results.items():
        for share, arms in shares.items():
            gains = " | ".join(f"{gain(arms, arm):.2f}x" for arm in ARMS_OF_TERMS)
            waits = (f"{arms[arm]['ttft_p99_s']:.1f}" for arm in ("kvflow-guard", "kvflow-cost"))
            lines.append(f"| {name} | {share} | {gains} | {', '.join(waits)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
