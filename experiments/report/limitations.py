"""The report's limitations: figures of the paper not reproduced, and cells KVFlow does not help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from experiments.report.paper_reference import TOLERANCE, reported
from experiments.report.plots import SAME

MIN_CHANGE = 0.05  # by admission control; smaller changes are not shown
MAX_ROWS = 15
OURS = ("kvflow", "kvflow-guard", "kvflow-cost")
GUARDED = ("kvflow-guard", "kvflow-cost")
METRICS = {
    "completion_mean_s": "mean completion of a run",
    "completion_p99_s": "completion of a run, 99th percentile",
    "ttft_mean_s": "mean time to first token",
    "ttft_p99_s": "time to first token, 99th percentile",
}


@dataclass(frozen=True)
class CellFigures:
    """Figures of the arms of one cell, of any result file."""

    group: str
    name: str
    arms: Mapping[str, Mapping[str, Any]]

    def gain(self, arm: str, key: str, slow: str = "hicache") -> float | None:
        """Return a figure of ``slow`` over the arm's (below 1: the arm is slower), if both ran."""
        if arm not in self.arms or slow not in self.arms:
            return None
        return float(self.arms[slow][key] / self.arms[arm][key])


def every_cell(
    paper: Mapping[str, Any], workloads: Mapping[str, Any], terms: Mapping[str, Any]
) -> list[CellFigures]:
    """Return every cell once: of ``terms`` only cells that are not among the workloads."""
    cells = [
        CellFigures(
            " ".join(takewhile(lambda word: "/" not in word, name.split())), name, cell["arms"]
        )
        for name, cell in paper["cells"].items()
        if "arms" in cell
    ]
    cells += [CellFigures("beyond the paper", name, arms) for name, arms in workloads.items()]
    for name, shares in terms.items():
        for share, arms in shares.items():
            same = workloads.get(name, {}).get("hicache", {})
            if arms["hicache"]["completions_s"] != same.get("completions_s"):
                about = f"{name}, host {share} of the device"
                cells.append(CellFigures("with less host memory", about, arms))
    return cells


def page(
    paper: Mapping[str, Any], workloads: Mapping[str, Any], terms: Mapping[str, Any]
) -> Iterator[str]:
    """Yield the lines of the page, Markdown."""
    cells = every_cell(paper, workloads, terms)
    yield from _not_reproduced(paper)
    yield from _against_hicache(cells)
    yield from _against_gpu_only([cell for cell in cells if cell.group != "with less host memory"])
    if terms:
        yield from _admission_cost(terms)


def _not_reproduced(paper: Mapping[str, Any]) -> Iterator[str]:
    figures = reported(paper)
    missed = [figure for figure in figures if not figure.is_reproduced]
    num_fitted = sum(figure.is_fitted for figure in figures)
    yield "## What of the paper is not reproduced"
    yield ""
    yield f"Of {len(figures)} comparisons {len(missed)} have an error above {TOLERANCE:.0%}, or are"
    yield f"on the other side of 1.00x. {num_fitted} of those that agree were fitted, and are no"
    yield "evidence."
    yield ""
    causes = list(dict.fromkeys(figure.cause for figure in missed))
    yield "| cell | speedup | the paper | ours | error | cause |"
    yield "|---|---|---|---|---|---|"
    for figure in missed:
        both = f"{figure.paper:.2f}x | {figure.ours:.2f}x | {figure.error:+.0%}"
        yield f"| {figure.name} | {figure.pair} | {both} | {causes.index(figure.cause) + 1} |"
    yield ""
    yield from (f"{number}. {cause}" for number, cause in enumerate(causes, 1))
    yield ""
    for name, cell in paper["cells"].items():
        pairs = cell.get("paper", {})
        if {"hicache over gpu-only", "kvflow over hicache"} <= pairs.keys():
            products = [
                pairs["hicache over gpu-only"][side] * pairs["kvflow over hicache"][side]
                for side in ("reported", "ours")
            ]
            yield f"- {name}, kvflow over gpu-only: the product of the paper's two figures is"
            yield f"  {products[0]:.2f}x, ours {products[1]:.2f}x."
    yield "- Not run: the ablation's 1.29x for eviction and prefetch together, whose sizes are"
    yield "  unknown, and version 1's Qwen2.5-32B on an H100."
    yield "- No cell has run on a GPU. All are in virtual time, on assumed rates."
    yield ""


def _against_hicache(cells: Sequence[CellFigures]) -> Iterator[str]:
    yield "## KVFlow against hierarchical LRU"
    yield ""
    yield f"Number of cells in which an arm is faster than hicache by more than {SAME:.0%}, equally"
    yield f"fast, and slower by more than {SAME:.0%}. All {len(cells)} cells:"
    yield ""
    yield from _counted(cells, OURS, METRICS, by_group=False)
    yield "By group, of kvflow-guard, the configuration of `--cache kvflow`:"
    yield ""
    yield from _counted(cells, GUARDED[:1], METRICS, by_group=True)
    gains = {cell.name: cell.gain(GUARDED[0], "completion_mean_s") for cell in cells}
    groups: dict[str, list[float]] = {}
    for cell in cells:
        if (gain := gains[cell.name]) is not None:
            groups.setdefault(cell.group, []).append(gain)
    no_gain = [group for group, gains in groups.items() if max(gains) <= 1 + SAME]
    beyond = [
        cell
        for cell in cells
        if cell.group == "beyond the paper" and abs((gains[cell.name] or 0) - 1) <= SAME
    ]
    yield "### Cells without a gain over it"
    yield ""
    stall = max((cell.arms["hicache"]["stall_share"] for cell in beyond), default=0.0)
    yield f"Mean completion of kvflow-guard: in no cell of {_listed(no_gain)} above {SAME:.0%};"
    yield f"beyond the paper within {SAME:.0%} in {_listed([cell.name for cell in beyond])}."
    yield "There the host tier is four times as large as the pool, and hicache loads while other"
    yield f"requests compute: it stalls for at most {stall:.1%} of the time."
    yield ""
    yield "### Cells in which KVFlow is slower"
    yield ""
    yield "hicache's figure and each arm's, with the ratio of the two in brackets. Below 1.00x the"
    yield f"arm is slower. Cells in which an arm is slower by more than {SAME:.0%}, the worst"
    yield "first."
    yield ""
    for key, about in METRICS.items():
        yield from _lost(cells, key, about)


def _counted(
    cells: Sequence[CellFigures], arms: Sequence[str], metrics: Mapping[str, str], *, by_group: bool
) -> Iterator[str]:
    yield f"| {'group' if by_group else 'arm'} | {' | '.join(metrics.values())} |"
    yield "|---" * (len(metrics) + 1) + "|"
    groups = list(dict.fromkeys(cell.group for cell in cells)) if by_group else [None]
    for group in groups:
        chosen = [cell for cell in cells if group in (None, cell.group)]
        for arm in arms:
            counts = (_counts(chosen, arm, key) for key in metrics)
            yield f"| {group or arm} | {' | '.join(counts)} |"
    yield ""


def _counts(cells: Sequence[CellFigures], arm: str, key: str) -> str:
    gains = [gain for cell in cells if (gain := cell.gain(arm, key)) is not None]
    faster = sum(gain > 1 + SAME for gain in gains)
    slower = sum(gain < 1 - SAME for gain in gains)
    return f"{faster}, {len(gains) - faster - slower}, {slower}"


def _lost(cells: Sequence[CellFigures], key: str, about: str) -> Iterator[str]:
    lost = []
    for cell in cells:
        gains = [gain for arm in OURS if (gain := cell.gain(arm, key)) is not None]
        if gains and min(gains) < 1 - SAME:
            lost.append((min(gains), cell))
    lost.sort(key=lambda entry: entry[0])
    yield f"{about.capitalize()}, s, in {len(lost)} of {len(cells)} cells:"
    yield ""
    if not lost:
        return
    yield f"| cell | hicache | {' | '.join(OURS)} |"
    yield "|---" * (len(OURS) + 2) + "|"
    for _, cell in lost[:MAX_ROWS]:
        shown = []
        for arm in OURS:
            gain = cell.gain(arm, key)
            shown.append("" if gain is None else f"{_seconds(cell.arms[arm][key])} ({gain:.2f}x)")
        yield f"| {cell.name} | {_seconds(cell.arms['hicache'][key])} | {' | '.join(shown)} |"
    if len(lost) > MAX_ROWS:
        yield f"| and {len(lost) - MAX_ROWS} more" + " |" * (len(OURS) + 2)
    yield ""


def _against_gpu_only(cells: Sequence[CellFigures]) -> Iterator[str]:
    yield "## Against no host tier"
    yield ""
    speeds = {
        arm: sorted(
            (gain, cell.name)
            for cell in cells
            if (gain := cell.gain(arm, _time_of(cell), "gpu-only")) is not None
        )
        for arm in ("hicache", *OURS)
    }
    yield f"gpu-only over the arm, in {len(cells)} cells: makespan in the paper's cells, mean"
    yield "completion in the others. Number of cells in which the arm is slower by 0.1% or more,"
    yield "and the slowest of them:"
    yield ""
    yield "| arm | slower cells | the slowest |"
    yield "|---|---|---|"
    for arm, gains in speeds.items():
        slower = [(gain, name) for gain, name in gains if gain < 0.999]
        worst = "; ".join(f"{gain:.3f}x {name}" for gain, name in slower[:3])
        yield f"| {arm} | {len(slower)} | {worst} |"
    yield ""
    yield "(Goal for the two arms with safeguards: no cell below 0.98x.)"
    yield ""


def _time_of(cell: CellFigures) -> str:
    return "completion_mean_s" if cell.group == "beyond the paper" else "makespan_s"


def _admission_cost(terms: Mapping[str, Any]) -> Iterator[str]:
    yield "## The cost of admission control to throttled runs"
    yield ""
    yield "While the cache thrashes, kvflow-cost time-slices workflow runs: admitted runs keep"
    yield "their KV, throttled runs wait. Each entry is the time without and with admission"
    yield "control, in seconds, in cells where mean completion or the 99th percentile of the time"
    yield f"to first token changes by more than {MIN_CHANGE:.0%}:"
    yield ""
    yield f"| cell | {' | '.join(METRICS.values())} |"
    yield "|---" * (len(METRICS) + 1) + "|"
    for name, shares in terms.items():
        for share, arms in shares.items():
            without, admission = arms["all runs"], arms["kvflow-cost"]
            changes = (
                abs(admission[key] / without[key] - 1)
                for key in ("completion_mean_s", "ttft_p99_s")
            )
            if max(changes) > MIN_CHANGE:
                shown = (f"{_seconds(without[key])}, {_seconds(admission[key])}" for key in METRICS)
                yield f"| {name}, host {share} of the device | {' | '.join(shown)} |"
    yield ""
    yield "`--no-admission` switches admission control off."
    yield ""


def _seconds(time_s: float) -> str:
    digits = 0 if time_s >= 100 else 1 if time_s >= 10 else 2 if time_s >= 1 else 3
    return f"{time_s:.{digits}f}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none"
