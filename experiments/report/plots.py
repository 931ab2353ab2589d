"""Figures of the report, each as PNG and SVG; those of engine timelines are in ``timelines``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D

from experiments.compare.arms import ARMS
from experiments.drawing import save

# The Okabe-Ito palette, which is distinguishable under most colour vision deficiencies.
COLOURS = {
    "gpu-only": "#7f7f7f",
    "hicache": "#e69f00",
    "kvflow-evict": "#56b4e9",
    "kvflow": "#0072b2",
    "kvflow-guard": "#cc79a7",
    "kvflow-cost": "#009e73",
    "oracle": "#d55e00",
    "unlimited": "#000000",
}
MARKERS = {
    "hicache": "s",
    "kvflow-evict": "v",
    "kvflow": "o",
    "kvflow-guard": "D",
    "kvflow-cost": "^",
    "oracle": "*",
    "unlimited": "|",
}
# Pairs of machines: rates of data sheets, and rates fitted to the paper.
GRIDS = (
    (("v1 a10g", "v1 a10g-effective"), "Llama-3.1-8B, ten agents in a ring"),
    (
        ("camera-ready h100-pcie x1", "camera-ready h100-effective x1"),
        "Qwen2.5-32B, ten stages of one agent",
    ),
    (
        ("camera-ready h100-pcie x2", "camera-ready h100-effective x2"),
        "Qwen2.5-32B, ten stages of two",
    ),
)
SAME = 0.01  # relative difference up to which two times count as equal


def speedup_grids(
    paper: Mapping[str, Any],
    fast: str,
    slow: str,
    reported_means: Mapping[Any, float],
    folder: Path,
) -> str | None:
    """Draw the speedup of one arm over another by machine and sizes; None if there is no cell.

    Args:
        paper: results of ``experiments.paper``.
        reported_means: (version of the paper, fixed tokens) -> the paper's mean speedup.
    """
    rows = [
        (about, [_grid(paper["cells"], prefix, fast, slow) for prefix in prefixes], prefixes)
        for prefixes, about in GRIDS
    ]
    rows = [row for row in rows if any(grid is not None for grid in row[1])]
    if not rows:
        return None
    figure, axes = plt.subplots(
        len(rows), 2, figsize=(10.5, 0.5 + 2.8 * len(rows)), squeeze=False, layout="constrained"
    )
    largest = max(
        np.nanmax(grid.ours) for _, grids, _ in rows for grid in grids if grid is not None
    )
    norm = LogNorm(1, max(1.5, largest))
    cmap = plt.get_cmap("Blues").with_extremes(under="#f4a582")
    for line, (about, grids, prefixes) in zip(axes, rows, strict=True):
        for axis, grid, prefix in zip(line, grids, prefixes, strict=True):
            if grid is None:
                axis.set_visible(False)
                continue
            _draw_grid(axis, grid, cmap, norm)
            axis.set_title(f"{prefix}\n{about}", loc="left")
            _write_means(axis, grid, prefix.split()[0], reported_means)
        line[0].set_ylabel("fixed tokens")
        if all(grid is not None for grid in grids):
            line[1].tick_params(labelleft=False)
    for axis in axes[-1]:
        axis.set_xlabel("dynamic/output tokens of a call")
    colours = ScalarMappable(norm, cmap)
    bar = figure.colorbar(colours, ax=axes, extend="min", shrink=0.7, pad=0.02)
    ticks = [tick for tick in (1, 1.25, 1.5, 2, 3, 4, 6) if tick <= max(1.5, largest)]
    bar.set_ticks(ticks, labels=[f"{tick:g}x" for tick in ticks])
    bar.minorticks_off()
    bar.set_label(f"makespan of {slow} over {fast}'s (orange: slower)")
    figure.suptitle(f"Speedup of {fast} over {slow}; in brackets the paper's")
    return save(figure, folder, f"{fast}-over-{slow}")


class _Grid:
    """Speedups of cells by sizes, ours and the paper's, f64[fixed, dynamic/output]."""

    def __init__(self, chosen: Mapping[str, Mapping[str, Any]], fast: str, slow: str) -> None:
        self.fixed = sorted({int(key.split("/")[0]) for key in chosen})
        self.others = list(dict.fromkeys(key.split("/", 1)[1] for key in chosen))
        self.ours = np.full((len(self.fixed), len(self.others)), np.nan)
        self.reported = self.ours.copy()
        for key, cell in chosen.items():
            fixed, others = key.split("/", 1)
            index = self.fixed.index(int(fixed)), self.others.index(others)
            self.ours[index] = cell["arms"][slow]["makespan_s"] / cell["arms"][fast]["makespan_s"]
            if (both := cell["paper"].get(f"{fast} over {slow}")) is not None:
                self.reported[index] = both["reported"]


def _grid(cells: Mapping[str, Any], prefix: str, fast: str, slow: str) -> _Grid | None:
    chosen = {
        key[len(prefix) + 1 :]: cell
        for key, cell in cells.items()
        if key.startswith(f"{prefix} ") and "arms" in cell
    }
    return _Grid(chosen, fast, slow) if chosen else None


def _draw_grid(axis: Any, grid: _Grid, cmap: Any, norm: LogNorm) -> None:
    is_slower = grid.ours < 1 - SAME
    shown = np.where(is_slower, grid.ours, np.maximum(grid.ours, 1))
    axis.imshow(shown, cmap=cmap, norm=norm, aspect="auto")
    for (row, column), value in np.ndenumerate(grid.ours):
        if np.isnan(value):
            continue
        text = f"{value:.2f}"
        if not np.isnan(reported := grid.reported[row, column]):
            text += f"\n({reported:.2f})"
        colour = "white" if norm(value) > 0.55 else "black"
        axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axis.set_xticks(range(len(grid.others)), grid.others, fontsize=8)
    axis.set_yticks(range(len(grid.fixed)), grid.fixed)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)


def _write_means(axis: Any, grid: _Grid, version: str, reported_means: Mapping[Any, float]) -> None:
    """Write each row's mean speedup beside it, and the paper's if it reports one."""
    for row, fixed in enumerate(grid.fixed):
        text = f"mean {np.nanmean(grid.ours[row]):.2f}"
        if (mean := reported_means.get((version, fixed))) is not None:
            text += f"\n(paper {mean:.2f})"
        axis.text(len(grid.others) - 0.4, row, text, va="center", fontsize=8)


def arms(workloads: Mapping[str, Mapping[str, Any]], folder: Path) -> str:
    """Draw mean completion and p99 time to first token of every arm, as shares of gpu-only's."""
    shown = [arm for arm in ARMS if arm in MARKERS]
    kinds = (
        ("completion_mean_s", "mean completion of a run over gpu-only's"),
        ("ttft_p99_s", "time to first token, 99th percentile, over gpu-only's"),
    )
    figure, axes = plt.subplots(
        1, 2, figsize=(10.5, 1.2 + 0.52 * len(workloads)), sharey=True, layout="constrained"
    )
    offsets = np.linspace(-0.36, 0.36, len(shown))
    for axis, (key, about) in zip(axes, kinds, strict=True):
        for row, figures in enumerate(workloads.values()):
            if row % 2:
                axis.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", lw=0, zorder=0)
            for arm, offset in zip(shown, offsets, strict=True):
                share = figures[arm][key] / figures["gpu-only"][key]
                label = arm if row == 0 else None
                style = {"color": COLOURS[arm], "marker": MARKERS[arm], "ls": "", "ms": 5}
                axis.plot(share, row + offset, label=label, clip_on=False, **style)
        axis.axvline(1, color=COLOURS["gpu-only"], lw=1)
        axis.set_xlabel(f"{about}\n(left of the line: faster)")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_xlim(0, 1.08)
    axes[1].set_xscale("log")
    axes[1].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes[0].set_yticks(range(len(workloads)), list(workloads))
    for axis in axes:
        axis.tick_params(axis="y", length=0)
    axes[0].set_ylim(len(workloads) - 0.5, -0.5)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(shown))
    return save(figure, folder, "arms")


def distributions(workloads: Mapping[str, Mapping[str, Any]], folder: Path) -> str | None:
    """Draw completion times of runs, of workloads whose runs end at different times, if any."""
    # Wide lines are drawn first, so that coinciding curves all stay visible.
    styles: dict[str, dict[str, Any]] = {
        "gpu-only": {"lw": 1.5},
        "hicache": {"lw": 4.5, "alpha": 0.6},
        "kvflow-guard": {"lw": 2.2},
        "kvflow-cost": {"lw": 1.3},
        "unlimited": {"lw": 1.0, "ls": ":"},
    }
    spread = {name: arms for name, arms in workloads.items() if _is_spread(arms["gpu-only"])}
    if not spread:
        return None
    columns = min(3, len(spread))
    rows = -(-len(spread) // columns)
    size = (3.5 * columns, 0.5 + 2.4 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, (name, figures) in zip(axes.flat, spread.items(), strict=False):
        for arm, style in styles.items():
            times = figures[arm]["completions_s"]
            share = np.arange(len(times) + 1) / len(times)
            axis.step([times[0], *times], share, where="post", color=COLOURS[arm], **style)
        num_runs = len(figures["gpu-only"]["completions_s"])
        axis.set_title(f"{name}, {num_runs} runs", loc="left")
        axis.set_xlim(left=0)
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(spread) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("share of runs")
    figure.supxlabel("completion of a run, s", fontsize=9)
    handles = [Line2D([], [], color=COLOURS[arm], **style) for arm, style in styles.items()]
    figure.legend(handles, list(styles), loc="outside upper center", ncols=len(styles))
    return save(figure, folder, "distributions")


def _is_spread(figures: Mapping[str, Any]) -> bool:
    times: Sequence[float] = figures["completions_s"]
    return times[-1] - times[0] > 0.2 * times[-1]
