"""Figures of the report, each as PNG and SVG. What engines did when is in ``timelines``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm

from experiments.compare.arms import ARMS

# Okabe and Ito's colours, which most who see colours otherwise tell apart.
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
# Machines by their data sheets, and with rates fitted to the paper, side by side.
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
SAME = 0.01  # what is closer than that is no faster and no slower
plt.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "figure.dpi": 120,
        "svg.fonttype": "none",
        "svg.hashsalt": "kvflow",
    }
)


def save(figure: Any, folder: Path, name: str) -> str:
    """Write a figure; its PNG's name."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", bbox_inches="tight", metadata={"Software": None})
    figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return f"{folder.name}/{name}.png"


def speedup_grids(
    paper: Mapping[str, Any],
    fast: str,
    slow: str,
    reported_means: Mapping[Any, float],
    folder: Path,
) -> str | None:
    """How many times as fast an arm is as another, by machine and sizes; None without a cell.

    Args:
        paper: of ``experiments.paper``.
        reported_means: (version of the paper, fixed tokens) -> the paper's mean.
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
    most = max(np.nanmax(grid.ours) for _, grids, _ in rows for grid in grids if grid is not None)
    norm = LogNorm(1, max(1.5, most))
    cmap = plt.get_cmap("Blues").with_extremes(under="#f4a582")
    image = None
    for line, (about, grids, prefixes) in zip(axes, rows, strict=True):
        for axis, grid, prefix in zip(line, grids, prefixes, strict=True):
            if grid is None:
                axis.set_visible(False)
                continue
            image = _draw_grid(axis, grid, cmap, norm)
            axis.set_title(f"{prefix}\n{about}", loc="left")
            means = {f: reported_means.get((prefix.split()[0], f)) for f in grid.fixed}
            for row, fixed in enumerate(grid.fixed):
                text = f"mean {np.nanmean(grid.ours[row]):.2f}"
                if (mean := means[fixed]) is not None:
                    text += f"\n(paper {mean:.2f})"
                axis.text(len(grid.rest) - 0.4, row, text, va="center", fontsize=8)
        line[0].set_ylabel("fixed tokens")
        if all(grid is not None for grid in grids):
            line[1].tick_params(labelleft=False)
    for axis in axes[-1]:
        axis.set_xlabel("dynamic/output tokens of a call")
    bar = figure.colorbar(image, ax=axes, extend="min", shrink=0.7, pad=0.02)
    ticks = [one for one in (1, 1.25, 1.5, 2, 3, 4, 6) if one <= norm.vmax]
    bar.set_ticks(ticks, labels=[f"{one:g}x" for one in ticks])
    bar.minorticks_off()
    bar.set_label(f"makespan of {slow} over {fast}'s (orange: slower)")
    figure.suptitle(f"{fast} over {slow}; in brackets what the paper reports")
    return save(figure, folder, f"{fast}-over-{slow}")


class _Grid:
    """Speedups of cells by sizes, f64[fixed, dynamic/output], and what is reported of them."""

    def __init__(self, chosen: Mapping[str, Mapping[str, Any]], fast: str, slow: str) -> None:
        self.fixed = sorted({int(key.split("/")[0]) for key in chosen})
        self.rest = list(dict.fromkeys(key.split("/", 1)[1] for key in chosen))
        self.ours = np.full((len(self.fixed), len(self.rest)), np.nan)
        self.reported = self.ours.copy()
        for key, cell in chosen.items():
            at = self.fixed.index(int(key.split("/")[0])), self.rest.index(key.split("/", 1)[1])
            self.ours[at] = cell["arms"][slow]["makespan_s"] / cell["arms"][fast]["makespan_s"]
            if (both := cell["paper"].get(f"{fast} over {slow}")) is not None:
                self.reported[at] = both["reported"]


def _grid(cells: Mapping[str, Any], prefix: str, fast: str, slow: str) -> _Grid | None:
    chosen = {
        key[len(prefix) + 1 :]: cell
        for key, cell in cells.items()
        if key.startswith(f"{prefix} ") and "arms" in cell
    }
    return _Grid(chosen, fast, slow) if chosen else None


def _draw_grid(axis: Any, grid: _Grid, cmap: Any, norm: LogNorm) -> Any:
    is_slower = grid.ours < 1 - SAME
    shown = np.where(is_slower, grid.ours, np.maximum(grid.ours, 1))
    image = axis.imshow(shown, cmap=cmap, norm=norm, aspect="auto")
    for (row, column), value in np.ndenumerate(grid.ours):
        if np.isnan(value):
            continue
        text = f"{value:.2f}"
        if not np.isnan(reported := grid.reported[row, column]):
            text += f"\n({reported:.2f})"
        colour = "white" if norm(value) > 0.55 else "black"
        axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axis.set_xticks(range(len(grid.rest)), grid.rest, fontsize=8)
    axis.set_yticks(range(len(grid.fixed)), grid.fixed)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    return image


def arms(workloads: Mapping[str, Mapping[str, Any]], folder: Path) -> str:
    """Mean completion and the first token's tail of every arm, as shares of gpu-only's."""
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
        for place, played in enumerate(workloads.values()):
            if place % 2:
                axis.axhspan(place - 0.5, place + 0.5, color="#f3f3f3", lw=0, zorder=0)
            for arm, offset in zip(shown, offsets, strict=True):
                share = played[arm][key] / played["gpu-only"][key]
                label = arm if place == 0 else None
                style = {"color": COLOURS[arm], "marker": MARKERS[arm], "ls": "", "ms": 5}
                axis.plot(share, place + offset, label=label, clip_on=False, **style)
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
    """Completion times of the runs, where they do not all end together; None where all do."""
    # The wide ones below, so that curves on top of each other are all seen.
    styles: dict[str, dict[str, Any]] = {
        "gpu-only": {"lw": 1.5},
        "hicache": {"lw": 4.5, "alpha": 0.6},
        "kvflow-guard": {"lw": 2.2},
        "kvflow-cost": {"lw": 1.3},
        "unlimited": {"lw": 1.0, "ls": ":"},
    }
    spread = {name: one for name, one in workloads.items() if _is_spread(one["gpu-only"])}
    if not spread:
        return None
    columns = min(3, len(spread))
    rows = -(-len(spread) // columns)
    size = (3.5 * columns, 0.5 + 2.4 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, (name, played) in zip(axes.flat, spread.items(), strict=False):
        for arm, style in styles.items():
            times = played[arm]["completions_s"]
            share = np.arange(len(times) + 1) / len(times)
            axis.step([times[0], *times], share, where="post", color=COLOURS[arm], **style)
        axis.set_title(f"{name}, {len(times)} runs", loc="left")
        axis.set_xlim(left=0)
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(spread) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("share of runs")
    figure.supxlabel("completion of a run, s", fontsize=9)
    handles = [plt.Line2D([], [], color=COLOURS[arm], **style) for arm, style in styles.items()]
    figure.legend(handles, list(styles), loc="outside upper center", ncols=len(styles))
    return save(figure, folder, "distributions")


def _is_spread(one: Mapping[str, Any]) -> bool:
    times: Sequence[float] = one["completions_s"]
    return times[-1] - times[0] > 0.2 * times[-1]
