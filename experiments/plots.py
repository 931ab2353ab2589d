"""Figures of the report, each as PNG and SVG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from experiments.arms import ARMS
from experiments.play import EngineTrace, Setting, play
from experiments.sim.machines import A10G, LLAMA_3_1_8B, pool_tokens
from experiments.workloads.base import Sizes, Workload
from experiments.workloads.paper import cycle
from kvflow_jax.cache.index import RootKey
from kvflow_jax.scheduler import StepPlan
from kvflow_jax.trace import ChromeTrace

COLOURS = {
    "gpu-only": "#7f7f7f",
    "hicache": "#ff7f0e",
    "kvflow-evict": "#9ecae1",
    "kvflow": "#1f77b4",
    "kvflow-guard": "#17becf",
    "kvflow-cost": "#2ca02c",
    "oracle": "#d62728",
    "unlimited": "#bcbd22",
}
plt.rcParams.update({"font.size": 9, "svg.hashsalt": "kvflow", "figure.dpi": 110})


def save(figure: Any, folder: Path, name: str) -> str:
    """Write a figure; its PNG's name."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", bbox_inches="tight", metadata={"Software": None})
    figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return f"{folder.name}/{name}.png"


def speedup_grid(cells: Mapping[str, Any], prefix: str, folder: Path, name: str) -> str:
    """How many times as fast kvflow is as each baseline, by sizes: fixed over dynamic/output."""
    chosen = {
        key[len(prefix) :].strip(): one["arms"]
        for key, one in cells.items()
        if key.startswith(prefix) and "arms" in one
    }
    fixed = sorted({int(key.split("/")[0]) for key in chosen})
    rest = list(dict.fromkeys(key.split("/", 1)[1] for key in chosen))
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), constrained_layout=True)
    for axis, slow in zip(axes, ("hicache", "gpu-only"), strict=True):
        grid = np.full((len(fixed), len(rest)), np.nan)
        for key, arms in chosen.items():
            at = fixed.index(int(key.split("/")[0])), rest.index(key.split("/", 1)[1])
            grid[at] = arms[slow]["makespan_s"] / arms["kvflow"]["makespan_s"]
        image = axis.imshow(grid, cmap="Blues", vmin=1.0, vmax=max(1.5, np.nanmax(grid)))
        for (row, column), value in np.ndenumerate(grid):
            if not np.isnan(value):
                dark = value > 1 + 0.6 * (image.norm.vmax - 1)
                colour = "white" if dark else "black"
                axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
        axis.set_xticks(range(len(rest)), rest, rotation=30)
        axis.set_yticks(range(len(fixed)), fixed)
        axis.set_title(f"kvflow over {slow}")
        axis.set_xlabel("dynamic/output tokens")
        axis.set_ylabel("fixed tokens")
    figure.suptitle(prefix.strip())
    return save(figure, folder, name)


def completions(workloads: Mapping[str, Mapping[str, Any]], folder: Path) -> str:
    """Distributions of the runs' completion times, for workloads of many runs."""
    many = {
        name: arms for name, arms in workloads.items() if len(arms["gpu-only"]["completions_s"]) > 5
    }
    columns = 3
    rows = -(-len(many) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(10, 2.6 * rows), constrained_layout=True, squeeze=False
    )
    for axis, (name, arms) in zip(axes.flat, many.items(), strict=False):
        for arm, one in arms.items():
            times = one["completions_s"]
            share = np.arange(1, len(times) + 1) / len(times)
            style = "--" if arm in ("oracle", "unlimited") else "-"
            axis.step(times, share, style, where="post", label=arm, color=COLOURS.get(arm), lw=1.2)
        axis.set_title(name)
        axis.set_xlabel("completion of a run, s")
        axis.set_ylim(0, 1.02)
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(many) :]:
        axis.set_visible(False)
    axes.flat[0].set_ylabel("share of runs")
    axes.flat[0].legend(fontsize=7)
    return save(figure, folder, "completions")


class _Residency(EngineTrace):
    """Which share of each prefix is on the device, after each step."""

    def __init__(self, workload: Workload) -> None:
        self.times: list[float] = []
        self.shares: list[list[float]] = []
        run = workload.runs[0]
        self._prefixes = {call.agent: call.parts[0] for call in run.calls}

    def step(self, plan: StepPlan, dispatched_s: float, finished_s: float) -> None:
        cache = self.engine.cache
        root = RootKey(LLAMA_3_1_8B.name)
        shares = []
        for prefix in self._prefixes.values():
            blocks = cache.match(root, np.asarray(prefix))
            shares.append(cache.residency.num_on_device(blocks) * cache.page_size / len(prefix))
        self.times.append(finished_s)
        self.shares.append(shares)


def residency_and_lanes(folder: Path) -> tuple[str, str]:
    """The paper's cycle on an A10G: what is where, and what runs when, under three arms."""
    workload = cycle(num_agents=10, num_rounds=2, sizes=Sizes(8192, 32, 32), vocab_size=128256)
    where = Setting(LLAMA_3_1_8B, A10G, pool_tokens(A10G, LLAMA_3_1_8B), 1 << 20, max_num_seqs=4)
    arms = ("gpu-only", "hicache", "kvflow")
    maps, lanes = (
        plt.subplots(3, 1, figsize=(9, 6), constrained_layout=True),
        plt.subplots(3, 1, figsize=(9, 5), constrained_layout=True),
    )
    for place, name in enumerate(arms):
        seen = _Residency(workload)
        play(where, workload, ARMS[name], seen)
        _draw_residency(maps[1][place], name, seen)
        path = folder / f".{name}.trace.json"
        folder.mkdir(parents=True, exist_ok=True)
        tracer = ChromeTrace(path)
        play(where, workload, ARMS[name], tracer)
        tracer.close()
        _draw_lanes(lanes[1][place], name, json.loads(path.read_text()))
        path.unlink()
    maps[1][-1].set_xlabel("seconds")
    lanes[1][-1].set_xlabel("seconds, two calls of the second round and what goes before")
    maps[0].suptitle("share of each agent's prefix on the device")
    lanes[0].suptitle("steps and copies")
    return save(maps[0], folder, "residency"), save(lanes[0], folder, "lanes")


def _draw_residency(axis: Any, name: str, seen: _Residency) -> None:
    ends = np.array([0.0, *seen.times])
    axis.pcolormesh(
        ends,
        np.arange(len(seen.shares[0]) + 1),
        np.array(seen.shares).T,
        cmap="Blues",
        vmin=0,
        vmax=1,
        rasterized=True,
    )
    axis.set_title(name, loc="left")
    axis.set_ylabel("agent")


def _draw_lanes(axis: Any, name: str, events: Sequence[Mapping[str, Any]]) -> None:
    rows = {1: "steps", 2: "to device", 3: "to host", 4: "stall"}
    slices = [e for e in events if e["ph"] == "X" and e["pid"] == 1]
    calls = sorted(e["ts"] for e in events if e["ph"] == "b" and e["name"].startswith("agent"))
    start_s = calls[-3] / 1e6
    end_s = max(e["ts"] + e["dur"] for e in slices) / 1e6 if len(calls) < 2 else calls[-1] / 1e6
    start_s -= 0.1 * (end_s - start_s)
    for lane in rows:
        for event in slices:
            end_ts = event["ts"] + event["dur"]
            if event["tid"] != lane or end_ts < start_s * 1e6 or event["ts"] > end_s * 1e6:
                continue
            is_prompt = lane == 1 and event["args"]["prompt_tokens"] > 0
            colour = {1: "#1f77b4", 2: "#2ca02c", 3: "#bcbd22", 4: "#d62728"}[lane]
            bar = (event["ts"] / 1e6, event["dur"] / 1e6)
            axis.broken_barh([bar], (lane - 0.4, 0.8), color="#08306b" if is_prompt else colour)
    axis.set_yticks(list(rows), list(rows.values()))
    axis.set_ylim(len(rows) + 0.6, 0.4)
    axis.set_xlim(start_s, end_s)
    axis.set_title(f"{name} (dark: prompts)", loc="left")
