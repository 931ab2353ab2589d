"""Writes REPORT.md and its figures from what the other experiments have left behind.

    python -m experiments.paper --mode sim --json experiments/results/paper_sim.json
    python -m experiments.paper --mode real --quick --json experiments/results/paper_real_cpu.json
    python -m experiments.compare --workload all --arms all --json experiments/results/compare.json
    python -m experiments.terms --json experiments/results/terms.json
    python -m experiments.report

Every figure in it is one that they have measured or simulated.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments import plots
from experiments.arms import ARMS, gap_closed
from experiments.terms import gain, table
from experiments.workloads.catalogue import WORKLOADS

RESULTS = Path(__file__).parent / "results"
SHOWN = ("gpu-only", "hicache", "kvflow-evict", "kvflow", "kvflow-guard", "kvflow-cost")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON files are")
    options = parser.parse_args()
    folder: Path = options.results
    found = {name: _read(folder / f"{name}.json") for name in ("paper_sim", "compare")}
    missing = [f"{name}.json" for name, one in found.items() if one is None]
    if missing:
        print(f"report: {', '.join(missing)} not found under {folder}", file=sys.stderr)
        return 2
    others = {name: _read(folder / f"{name}.json") for name in ("paper_real_cpu", "terms")}
    lines = list(_report(**found, **others, figures=folder / "figures"))
    path = folder / "REPORT.md"
    path.write_text("\n".join(lines) + "\n")
    print(f"written to {path}")
    return 0


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _report(
    paper_sim: Any, compare: Any, paper_real_cpu: Any, terms: Any, figures: Path
) -> Iterator[str]:
    workloads = _without_machine(compare)
    yield "# Results"
    yield ""
    yield "Written by `python -m experiments.report` from the JSON files beside it."
    yield "Times are virtual unless a heading says otherwise: the engine's own scheduler, cache and"
    yield "controller on a clock that a roofline model of the machine moves (`experiments/sim`)."
    yield "Machines and the share of their peaks that is assumed: `experiments/sim/machines.py`."
    yield ""
    yield from _arms()
    yield from _paper(paper_sim, figures)
    if paper_real_cpu is not None:
        yield from _real(paper_real_cpu)
    yield from _compared(workloads, figures)
    if terms is not None:
        yield from _terms(_without_machine(terms))
    yield from _honest(paper_sim, workloads)


def _without_machine(results: Any) -> dict[str, Any]:
    return {name: one for name, one in results.items() if name != "machine"}


def _arms() -> Iterator[str]:
    yield "## Arms"
    yield ""
    for name, arm in ARMS.items():
        yield f"- `{name}`: {arm.about}"
    yield ""


def _paper(paper: Any, figures: Path) -> Iterator[str]:
    cells = paper["cells"]
    residency, lanes = plots.residency_and_lanes(figures)
    yield "## The paper's evaluation (arXiv 2507.07400)"
    yield ""
    yield "What the paper reports of single cells, and ours:"
    yield ""
    yield "| cell | | the paper | ours | |"
    yield "|---|---|---|---|---|"
    for name, cell in cells.items():
        for pair, both in cell.get("paper", {}).items():
            off = both["ours"] / both["reported"] - 1
            said = f"{both['reported']:.2f}x | {both['ours']:.2f}x | {off:+.0%}"
            yield f"| {name} | {pair} | {said} |"
    yield ""
    yield "Means of kvflow over hicache, over all sizes with the same fixed prefix:"
    yield ""
    yield "| | cells | the paper | ours |"
    yield "|---|---|---|---|"
    for name, both in paper["means"].items():
        said = f"{both['reported']:.2f}x" if "reported" in both else ""
        yield f"| {name} | {both['cells']} | {said} | {both['ours']:.2f}x |"
    yield ""
    yield "`a10g` and `h100-pcie` are the machines as data sheets and the paper's links have them;"
    yield "a good reactive host tier loses little there. `h100-effective` differs in one rate,"
    yield "reload, fitted on the cell 4096/32/32 alone; `a10g-effective` in two, reload and"
    yield "products, fitted on 8192/32/32."
    yield ""
    for prefix in ("v1 a10g ", "v1 a10g-effective ", "camera-ready h100-effective x1 "):
        if any(name.startswith(prefix) and "arms" in one for name, one in cells.items()):
            file = plots.speedup_grid(cells, prefix, figures, prefix.strip().replace(" ", "-"))
            yield f"![speedups, {prefix.strip()}]({file})"
            yield ""
    yield f"![residency]({residency})"
    yield ""
    yield f"![lanes]({lanes})"
    yield ""


def _real(real: Any) -> Iterator[str]:
    machine = real["machine"]
    yield "## Real execution beside virtual time"
    yield ""
    yield f"On {machine['cpu']} with {machine['cores']} cores, SmolLM2-135M in float32, the host"
    yield f"link emulated at {real['link_ratio']:.3f} of the time to compute; `python -m"
    yield "experiments.paper --mode real --quick`. Makespans, seconds:"
    yield ""
    yield "| | real | virtual | off by |"
    yield "|---|---|---|---|"
    for name, one in real["arms_played"].items():
        times = one["real"]["makespan_s"], one["sim"]["makespan_s"]
        yield f"| {name} | {times[0]:.1f} | {times[1]:.1f} | {times[1] / times[0] - 1:+.1%} |"
    yield ""
    orders = ", ".join(f"{name}: {one}" for name, one in real["same_order"].items())
    yield f"Off by {real['worst_error']:.1%} at most (asked: 15%). Same order of arms: {orders}."
    yield ""


def _compared(workloads: Any, figures: Path) -> Iterator[str]:
    yield "## Workloads beyond the paper's"
    yield ""
    yield "Mean completion time of a run, gpu-only over the arm; in brackets the share of the gap"
    yield "between gpu-only and the oracle that it closes, where that gap is 5% or more."
    yield "The oracle is the fastest of its runs; the first knows no more than kvflow-guard."
    yield ""
    arms = (*SHOWN[1:], "oracle", "unlimited")
    yield f"| | where | {' | '.join(arms)} |"
    yield "|---" * (len(arms) + 2) + "|"
    for name, played in workloads.items():
        cells = []
        for arm in arms:
            speed = played["gpu-only"]["completion_mean_s"] / played[arm]["completion_mean_s"]
            closed = gap_closed(played, arm, "completion_mean_s")
            is_shown = closed is not None and arm in SHOWN
            cells.append(f"{speed:.2f}x" + (f" ({closed:.0%})" if is_shown else ""))
        entry = WORKLOADS[name]
        yield f"| {name} | {entry.model}, {entry.machine} | {' | '.join(cells)} |"
    yield ""
    yield f"![completion times]({plots.completions(workloads, figures)})"
    yield ""
    yield "Other figures of the same: mean time to first token (s), stall, prompt tokens from"
    yield "device, host and computed (thousands), prefetched blocks that were of use, late, wasted."
    yield ""
    yield "| | arm | ttft | stall | device, host, computed | useful, late, wasted |"
    yield "|---|---|---|---|---|---|"
    for name, played in workloads.items():
        for arm in ("gpu-only", "hicache", "kvflow-guard", "kvflow-cost"):
            one = played[arm]
            tokens = ", ".join(
                f"{one[key] / 1e3:.0f}"
                for key in ("tokens_from_device", "tokens_from_host", "tokens_recomputed")
            )
            blocks = ", ".join(
                str(one[f"prefetch_{kind}_blocks"]) for kind in ("useful", "late", "wasted")
            )
            yield (
                f"| {name} | {arm} | {one['ttft_mean_s']:.3f} | {one['stall_share']:.1%} "
                f"| {tokens} | {blocks} |"
            )
    yield ""


def _honest(paper: Any, workloads: Any) -> Iterator[str]:
    """Where it does not help, and what was aimed at and missed."""
    speeds: list[tuple[float, str]] = []
    for name, cell in paper["cells"].items():
        if arms := cell.get("arms"):
            base = arms["gpu-only"]["makespan_s"]
            speeds += [(base / arms[arm]["makespan_s"], f"{name}, {arm}") for arm in arms]
    for name, played in workloads.items():
        base = played["gpu-only"]["completion_mean_s"]
        times = {arm: one["completion_mean_s"] for arm, one in played.items()}
        speeds += [(base / taken, f"{name}, {arm}") for arm, taken in times.items()]
    guarded = [one for one in speeds if one[1].endswith(("kvflow-guard", "kvflow-cost"))]
    yield "## Where it does not help"
    yield ""
    yield f"Worst of {len(guarded)} cells with the guard on, against gpu-only (asked: 0.98x):"
    yield ""
    for speed, name in sorted(guarded)[:5]:
        yield f"- {speed:.3f}x {name}"
    yield ""
    unguarded = [one for one in speeds if one[1].endswith((", kvflow", ", hicache"))]
    yield "Without it, hicache and kvflow:"
    yield ""
    for speed, name in sorted(unguarded)[:5]:
        yield f"- {speed:.3f}x {name}"
    yield ""
    yield "kvflow over hicache, mean completion, where it gains least:"
    yield ""
    over = sorted(
        (played["hicache"]["completion_mean_s"] / played["kvflow-guard"]["completion_mean_s"], name)
        for name, played in workloads.items()
    )
    for speed, name in over[:5]:
        yield f"- {speed:.2f}x {name}"
    yield ""
    closed = {
        arm: [
            share
            for played in workloads.values()
            if (share := gap_closed(played, arm, "completion_mean_s")) is not None
        ]
        for arm in ("hicache", "kvflow", "kvflow-guard", "kvflow-cost")
    }
    yield "Gap to the oracle closed, mean over the workloads that have one (aims: 80% for kvflow,"
    yield (
        "90% for kvflow-cost): "
        + ", ".join(f"{arm} {fmean(shares):.0%}" for arm, shares in closed.items() if shares)
        + "."
    )
    yield ""


def _terms(results: Any) -> Iterator[str]:
    yield "## What each part of kvflow-cost brings"
    yield ""
    yield "Mean completion of `kvflow-guard` over the arm's, by the host's room for KV as a share"
    yield "of the device's (`python -m experiments.terms`). `kvflow-cost` without one of its parts:"
    yield "`all branches` as if every branch were taken; `all depths` as if every block took as"
    yield "long to compute; `all runs` holds no run back."
    yield ""
    yield table(results)
    yield ""
    means = {
        share: fmean(gain(shares[share], "kvflow-cost") for shares in results.values())
        for share in next(iter(results.values()))
    }
    yield (
        "kvflow-cost over kvflow-guard, mean completion (asked: 1.15x mean): "
        + ", ".join(f"{mean:.2f}x with {share} of host memory" for share, mean in means.items())
        + f"; of all {fmean(means.values()):.2f}x."
    )
    yield "Those who are held back wait for it: see the first token's 99th percentile."
    yield ""


if __name__ == "__main__":
    sys.exit(main())
