"""The report's tables, as lines of Markdown. The text above each defines its ratios."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from experiments.compare.ablation import gain, table
from experiments.compare.arms import ARMS, gap_closed
from experiments.paper.real import NOISE, simulation_errors
from experiments.workloads.catalogue import WORKLOADS

COMPLETION = "completion_mean_s"


def paper_cells(paper: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paper's speedups and ours, of single cells and of means."""
    yield "Single cells: makespan of the slower arm over that of the faster one, without the first"
    yield "round, which computes every prefix under any arm: the paper also warms the prefixes."
    yield ""
    yield "| cell | speedup | the paper | ours | error |"
    yield "|---|---|---|---|---|"
    for name, cell in paper["cells"].items():
        for pair, both in cell.get("paper", {}).items():
            yield f"| {name} | {pair} | {_beside(both)} |"
    yield ""
    yield "Means of that ratio, kvflow over hicache, over all sizes with the same fixed prefix (in"
    yield "the camera-ready, with one and with two branches):"
    yield ""
    yield "| mean | cells | the paper | ours | error |"
    yield "|---|---|---|---|---|"
    for name, both in paper["means"].items():
        yield f"| {name} | {both['cells']} | {_beside(both)} |"
    yield ""


def _beside(both: Mapping[str, float]) -> str:
    if "reported" not in both:
        return f" | {both['ours']:.2f}x | "
    error = both["ours"] / both["reported"] - 1
    return f"{both['reported']:.2f}x | {both['ours']:.2f}x | {error:+.0%}"


def real(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield real makespans beside those of virtual time."""
    yield "| cell | real, s | virtual, s | error | gpu-only over it, real | virtual | error |"
    yield "|---|---|---|---|---|---|---|"
    cells = results["arms_played"]
    for name, cell in cells.items():
        real_s, virtual_s = (cell[kind]["makespan_s"] for kind in ("real", "sim"))
        line = f"| {name} | {real_s:.1f} | {virtual_s:.1f} | {virtual_s / real_s - 1:+.1%} |"
        base = cells.get(f"{name.rsplit(' ', 1)[0]} gpu-only")
        if base is None or base is cell:
            yield f"{line} | | |"
            continue
        real, virtual = (base[k]["makespan_s"] / cell[k]["makespan_s"] for k in ("real", "sim"))
        yield f"{line} {real:.2f}x | {virtual:.2f}x | {virtual / real - 1:+.1%} |"
    yield ""
    errors = simulation_errors(cells)
    yield f"The largest error of a time is {errors['worst_error']:.1%} (goal: 15%), of a ratio"
    yield f"between two arms of a workload {errors['worst_ratio_error']:.1%}: errors of two arms"
    yield f"may add up. Same order of arms, where one is faster by more than {NOISE:.0%} in real"
    yield "time (closer"
    orders = ", ".join(
        f"{name} {'yes' if same else 'no'}" for name, same in errors["same_order"].items()
    )
    yield f"arms may be in either order): {orders}."
    yield ""


def speeds(workloads: Mapping[str, Any]) -> Iterator[str]:
    """Yield the speedup of every arm over gpu-only in mean completion."""
    yield "Mean completion time of a run, from its arrival to its end, first round included:"
    yield "gpu-only's over the arm's. (Hence `cycle` gains less here than in the paper's grid,"
    yield "which excludes the first round.) In brackets: the time that an arm saves, as a share of"
    yield "what the fastest arm except `unlimited` saves, if that is 5% or more of gpu-only's time."
    yield ""
    arms = list(ARMS)[1:]
    yield f"| workload | model, machine | {' | '.join(arms)} |"
    yield "|---" * (len(arms) + 2) + "|"
    for name, figures in workloads.items():
        cells = []
        for arm in arms:
            speed = figures["gpu-only"][COMPLETION] / figures[arm][COMPLETION]
            closed = None if ARMS[arm].is_unlimited else gap_closed(figures, arm, COMPLETION)
            cells.append(f"{speed:.2f}x" + ("" if closed is None else f" ({closed:.0%})"))
        entry = WORKLOADS.get(name)
        where = "" if entry is None else f"{entry.model}, {entry.machine}"
        yield f"| {name} | {where} | {' | '.join(cells)} |"
    yield ""


def shares_closed(workloads: Mapping[str, Any]) -> dict[str, float]:
    """Return each arm's mean ``gap_closed``, over the workloads that have one."""
    shares = {
        arm: [
            share
            for figures in workloads.values()
            if (share := gap_closed(figures, arm, COMPLETION)) is not None
        ]
        for arm in ("hicache", "kvflow", "kvflow-guard", "kvflow-cost", "oracle")
    }
    return {arm: fmean(values) for arm, values in shares.items() if values}


def terms(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the ablation of kvflow-cost, by host memory."""
    yield "Mean completion of `kvflow-guard` over the arm's, by the size of the host tier as a"
    yield "share of the device pool. Three arms are `kvflow-cost` without one of its terms: `all"
    yield "branches` treats every branch as taken; `all depths` treats all blocks as equally costly"
    yield "to compute; `all runs` has no admission control. Two arms have admission control"
    yield "(`turns`) with another eviction order: KVFlow's (`kvflow, turns`) and LRU (`lru,"
    yield "turns`). `oracle` evicts by the recorded future but has no admission control, so"
    yield "kvflow-cost can be faster. Admission control improves mean completion, as some runs end"
    yield "sooner and none much later; the makespan hardly changes."
    yield ""
    yield table(results)
    yield ""
    means = gains_of_cost(results)
    by_share = ", ".join(f"{mean:.2f}x with host {share}" for share, mean in means.items())
    yield "kvflow-cost over kvflow-guard, mean completion (goal: 1.15x on average):"
    yield f"{by_share}; average {fmean(means.values()):.2f}x."
    yield "Throttled runs pay for it: see [the cost of admission"
    yield "control](#the-cost-of-admission-control-to-throttled-runs)."
    yield ""


def gains_of_cost(results: Mapping[str, Any]) -> dict[str, float]:
    """Return the mean speedup of kvflow-cost over kvflow-guard, by host share."""
    return {
        share: fmean(gain(shares[share], "kvflow-cost") for shares in results.values())
        for share in next(iter(results.values()))
    }


def everything(workloads: Mapping[str, Any]) -> Iterator[str]:
    """Yield all figures of all arms, in collapsed sections."""
    for name, arms in workloads.items():
        yield f"<details><summary>{name}</summary>"
        yield ""
        yield (
            "| arm | completion mean, p50, p99, s | ttft mean, p99, s | stall | device, host, "
            "computed | loaded, offloaded, GB | evicted | useful, late, wasted | preemptions |"
        )
        yield "|---|---|---|---|---|---|---|---|---|"
        for arm, figures in arms.items():
            yield f"| {arm} | {' | '.join(_figures(figures))} |"
        yield ""
        yield "</details>"
        yield ""


def _figures(figures: Mapping[str, Any]) -> Iterator[str]:
    yield ", ".join(f"{figures[f'completion_{kind}_s']:.1f}" for kind in ("mean", "p50", "p99"))
    yield f"{figures['ttft_mean_s']:.3f}, {figures['ttft_p99_s']:.2f}"
    yield f"{figures['stall_share']:.1%}"
    kinds = ("from_device", "from_host", "recomputed")
    yield ", ".join(f"{figures[f'tokens_{kind}'] / 1e3:.0f}" for kind in kinds)
    yield f"{figures['load_bytes'] / 1e9:.1f}, {figures['save_bytes'] / 1e9:.1f}"
    yield str(figures["evicted_blocks"])
    yield ", ".join(
        str(figures[f"prefetch_{kind}_blocks"]) for kind in ("useful", "late", "wasted")
    )
    yield str(figures["preemptions"])
