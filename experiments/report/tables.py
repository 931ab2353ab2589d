"""The report's tables, as lines of Markdown. Above each stands what is divided by what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from experiments.compare.ablation import gain, table
from experiments.compare.arms import ARMS, gap_closed
from experiments.paper.real import NOISE, compared
from experiments.workloads.catalogue import WORKLOADS

COMPLETION = "completion_mean_s"


def paper_cells(paper: Mapping[str, Any]) -> Iterator[str]:
    """Of single cells, the paper's figures and ours."""
    yield "Single cells: makespan of the slower arm over the faster one's, of the rounds after the"
    yield "first. The first, which computes every prefix under any arm, is left out: the paper"
    yield "warms the prefixes too."
    yield ""
    yield "| cell | | the paper | ours | off by |"
    yield "|---|---|---|---|---|"
    for name, cell in paper["cells"].items():
        for pair, both in cell.get("paper", {}).items():
            yield f"| {name} | {pair} | {_beside(both)} |"
    yield ""
    yield "Means of that ratio, kvflow over hicache, over all sizes with the same fixed prefix (of"
    yield "the camera-ready, with one and with two branches):"
    yield ""
    yield "| | cells | the paper | ours | off by |"
    yield "|---|---|---|---|---|"
    for name, both in paper["means"].items():
        yield f"| {name} | {both['cells']} | {_beside(both)} |"
    yield ""


def _beside(both: Mapping[str, float]) -> str:
    if "reported" not in both:
        return f" | {both['ours']:.2f}x | "
    off = both["ours"] / both["reported"] - 1
    return f"{both['reported']:.2f}x | {both['ours']:.2f}x | {off:+.0%}"


def real(results: Mapping[str, Any]) -> Iterator[str]:
    """Real makespans, and what virtual time makes of the same."""
    yield "| | real, s | virtual, s | off by | gpu-only over it, real | virtual | off by |"
    yield "|---|---|---|---|---|---|---|"
    played = results["arms_played"]
    for name, one in played.items():
        taken = [one[kind]["makespan_s"] for kind in ("real", "sim")]
        line = f"| {name} | {taken[0]:.1f} | {taken[1]:.1f} | {taken[1] / taken[0] - 1:+.1%} |"
        base = played.get(f"{name.rsplit(' ', 1)[0]} gpu-only")
        if base is None or base is one:
            yield f"{line} | | |"
            continue
        ratios = [base[kind]["makespan_s"] / one[kind]["makespan_s"] for kind in ("real", "sim")]
        off = f"{ratios[1] / ratios[0] - 1:+.1%}"
        yield f"{line} {ratios[0]:.2f}x | {ratios[1]:.2f}x | {off} |"
    yield ""
    said = compared(played)
    yield f"Times are off by {said['worst_error']:.1%} at most (asked: 15%), ratios of any two"
    yield f"arms of a workload by {said['worst_ratio_error']:.1%}: errors of two arms may add up."
    yield f"Same order of arms, where one is really faster by more than {NOISE:.0%} (closer ones"
    orders = ", ".join(
        f"{name} {'yes' if one else 'no'}" for name, one in said["same_order"].items()
    )
    yield f"may stand in either): {orders}."
    yield ""


def speeds(workloads: Mapping[str, Any]) -> Iterator[str]:
    """Mean completion of every arm against gpu-only's."""
    yield "Mean completion time of a run, from its arrival to its end, its first round included:"
    yield "gpu-only's over the arm's. (Hence `cycle` gains less here than in the paper's grid,"
    yield "which leaves the first round out.) In brackets the share that an arm saves of what the"
    yield "fastest arm saves, `unlimited` not counted, where that is 5% or more of gpu-only's time."
    yield ""
    arms = list(ARMS)[1:]
    yield f"| | where | {' | '.join(arms)} |"
    yield "|---" * (len(arms) + 2) + "|"
    for name, played in workloads.items():
        cells = []
        for arm in arms:
            speed = played["gpu-only"][COMPLETION] / played[arm][COMPLETION]
            closed = None if ARMS[arm].is_unlimited else gap_closed(played, arm, COMPLETION)
            cells.append(f"{speed:.2f}x" + ("" if closed is None else f" ({closed:.0%})"))
        entry = WORKLOADS.get(name)
        where = "" if entry is None else f"{entry.model}, {entry.machine}"
        yield f"| {name} | {where} | {' | '.join(cells)} |"
    yield ""


def shares_closed(workloads: Mapping[str, Any]) -> dict[str, float]:
    """Of each arm, the mean share of what the fastest saves, where there is something to save."""
    shares = {
        arm: [
            share
            for played in workloads.values()
            if (share := gap_closed(played, arm, COMPLETION)) is not None
        ]
        for arm in ("hicache", "kvflow", "kvflow-guard", "kvflow-cost", "oracle")
    }
    return {arm: fmean(found) for arm, found in shares.items() if found}


def terms(results: Mapping[str, Any]) -> Iterator[str]:
    """What each part of kvflow-cost brings, by host memory."""
    yield "Mean completion of `kvflow-guard` over the arm's, by the host's room for KV as a share"
    yield "of the device's. `kvflow-cost` without one of its parts: `all branches` as if every"
    yield "branch were taken; `all depths` as if every block took as long to compute; `all runs`"
    yield "holds no run back. And its turns under other orders: KVFlow's (`kvflow, turns`) and"
    yield "recency's (`lru, turns`). `oracle` evicts with the future known, but holds nobody back:"
    yield "where runs take turns, kvflow-cost passes it. What turns gain is in the mean completion,"
    yield "as some end sooner and none much later; the makespan hardly moves."
    yield ""
    yield table(results)
    yield ""
    means = gains_of_cost(results)
    said = ", ".join(f"{mean:.2f}x with {share} of host memory" for share, mean in means.items())
    yield "kvflow-cost over kvflow-guard, mean completion (asked: 1.15x mean):"
    yield f"{said}; of all {fmean(means.values()):.2f}x."
    yield "Who waits for it: [what turns cost](#what-turns-cost-those-who-wait)."
    yield ""


def gains_of_cost(results: Mapping[str, Any]) -> dict[str, float]:
    """By host memory, how many times as fast as kvflow-guard kvflow-cost is, on average."""
    return {
        share: fmean(gain(shares[share], "kvflow-cost") for shares in results.values())
        for share in next(iter(results.values()))
    }


def everything(workloads: Mapping[str, Any]) -> Iterator[str]:
    """All figures of all arms, folded away."""
    for name, played in workloads.items():
        yield f"<details><summary>{name}</summary>"
        yield ""
        yield (
            "| arm | completion mean, p50, p99, s | ttft mean, p99, s | stall | device, host, "
            "computed | to device, to host, GB | evicted | useful, late, wasted | preempted |"
        )
        yield "|---|---|---|---|---|---|---|---|---|"
        for arm, one in played.items():
            yield f"| {arm} | {' | '.join(_figures(one))} |"
        yield ""
        yield "</details>"
        yield ""


def _figures(one: Mapping[str, Any]) -> Iterator[str]:
    yield ", ".join(f"{one[f'completion_{kind}_s']:.1f}" for kind in ("mean", "p50", "p99"))
    yield f"{one['ttft_mean_s']:.3f}, {one['ttft_p99_s']:.2f}"
    yield f"{one['stall_share']:.1%}"
    kinds = ("from_device", "from_host", "recomputed")
    yield ", ".join(f"{one[f'tokens_{kind}'] / 1e3:.0f}" for kind in kinds)
    yield f"{one['load_bytes'] / 1e9:.1f}, {one['save_bytes'] / 1e9:.1f}"
    yield str(one["evicted_blocks"])
    yield ", ".join(str(one[f"prefetch_{kind}_blocks"]) for kind in ("useful", "late", "wasted"))
    yield str(one["preemptions"])
