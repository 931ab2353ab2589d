"""Timelines of the paper's cycle on an A10G under its three arms, drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle

from experiments.compare.arms import ARMS, PAPER_ARMS
from experiments.compare.run_cell import EngineTrace, Setting, run_cell
from experiments.drawing import save
from experiments.workloads.base import Sizes, Workload
from experiments.workloads.paper import cycle
from kvflow_jax.cache.index import RootKey
from kvflow_jax.engine.step_plan import StepPlan
from kvflow_jax.engine.trace import ChromeTrace
from kvflow_jax.sim.machines import A10G, LLAMA_3_1_8B, pool_tokens

NUM_AGENTS = 10
NUM_ROUNDS = 2
SIZES = Sizes(8192, 32, 32)
_ROWS = {1: "steps", 2: "to device", 3: "to host", 4: "stall"}  # by thread id of the trace
_PROMPT, _DECODE = "#08306b", "#6baed6"
_COLOURS = {2: "#009e73", 3: "#e6ab02", 4: "#d55e00"}
_LEGEND = {
    "step with a prompt": _PROMPT,
    "step of decoding": _DECODE,
    "copy to the device": _COLOURS[2],
    "copy to the host": _COLOURS[3],
    "device waits for a copy": _COLOURS[4],
}


def draw(folder: Path) -> tuple[str, str]:
    """Draw the residency of prefixes, and steps and copies; return the names of both figures."""
    workload = cycle(
        num_agents=NUM_AGENTS,
        num_rounds=NUM_ROUNDS,
        sizes=SIZES,
        vocab_size=LLAMA_3_1_8B.vocab_size,
    )
    setting = Setting(LLAMA_3_1_8B, A10G, pool_tokens(A10G, LLAMA_3_1_8B), 1 << 20, max_num_seqs=4)
    return _residency(setting, workload, folder), _timeline(setting, workload, folder)


class _Residency(EngineTrace):
    """Records the share of each prefix that is on the device, after each step."""

    def __init__(self, workload: Workload) -> None:
        self.times: list[float] = []
        self.shares: list[list[float]] = []
        run = workload.runs[0]
        self._prefixes = {call.agent: np.asarray(call.parts[0]) for call in run.calls}

    def on_step(self, plan: StepPlan, dispatched_s: float, finished_s: float) -> None:
        cache = self.engine.cache
        root = RootKey(LLAMA_3_1_8B.name)
        shares = []
        for prefix in self._prefixes.values():
            blocks = cache.match(root, prefix)
            shares.append(cache.state_of(blocks).num_on_device * cache.page_size / len(prefix))
        self.times.append(finished_s)
        self.shares.append(shares)


def _residency(setting: Setting, workload: Workload, folder: Path) -> str:
    figure, axes = plt.subplots(3, 1, figsize=(9.5, 6.4), sharex=True, layout="constrained")
    norm, last_s = Normalize(0, 1), 0.0
    for axis, name in zip(axes, PAPER_ARMS, strict=True):
        tracer = _Residency(workload)
        records = run_cell(setting, workload, ARMS[name], tracer).records
        edges = np.array([0.0, *tracer.times])
        agents = np.arange(NUM_AGENTS + 1) + 0.5
        shares = np.array(tracer.shares).T
        axis.pcolormesh(edges, agents, shares, cmap="Blues", norm=norm, rasterized=True)
        for number in range(NUM_ROUNDS + 1):
            start_s = min(record.start_s for record in records if record.round == number)
            axis.axvline(start_s, color="black", lw=0.8, ls=":")
            label = "round 0, computes all" if number == 0 else f"round {number}"
            axis.text(start_s + 0.8, NUM_AGENTS + 0.7, label, fontsize=8, va="bottom")
        axis.axvline(edges[-1], color="black", lw=1)
        axis.text(edges[-1] + 1, 5.5, f"done, {edges[-1]:.0f} s", va="center")
        axis.set_title(name, loc="left", pad=16, fontweight="bold")
        axis.set_yticks(range(1, NUM_AGENTS + 1, 3))
        axis.set_ylabel("agent")
        last_s = max(last_s, edges[-1])
    axes[0].set_xlim(0, 1.1 * last_s)
    axes[-1].set_xlabel("time since the first call, s (virtual)")
    bar = figure.colorbar(ScalarMappable(norm, "Blues"), ax=axes, shrink=0.6, pad=0.02)
    bar.set_label("share of an agent's prefix on the device")
    return save(figure, folder, "residency")


def _timeline(setting: Setting, workload: Workload, folder: Path) -> str:
    figure, axes = plt.subplots(3, 1, figsize=(9.5, 5.6), sharex=True, layout="constrained")
    with TemporaryDirectory() as scratch:
        traces = {}
        for name in PAPER_ARMS:
            tracer = ChromeTrace(Path(scratch) / f"{name}.json")
            run_cell(setting, workload, ARMS[name], tracer)
            tracer.close()
            traces[name] = json.loads((Path(scratch) / f"{name}.json").read_text())
    # As long as the slowest arm takes for one call: the others show how far they come meanwhile.
    window_s = 1.03 * max(np.diff(_starts_s(trace)[:2])[0] for trace in traces.values())
    for axis, (name, trace) in zip(axes, traces.items(), strict=True):
        starts_s = _starts_s(trace)
        _draw_slices(axis, trace, starts_s[0], window_s)
        for number, start_s in enumerate(starts_s - starts_s[0]):
            if start_s < window_s:
                axis.axvline(start_s, color="black", lw=0.8, ls=":")
                if start_s < 0.95 * window_s:
                    corner = (start_s + 0.02, 0.35)
                    axis.text(*corner, f"agent {number + 1}", fontsize=8, va="bottom")
        axis.set_yticks(list(_ROWS), list(_ROWS.values()))
        axis.set_ylim(len(_ROWS) + 0.6, 0.4)
        axis.tick_params(axis="y", length=0)
        axis.set_title(name, loc="left", pad=16, fontweight="bold")
    axes[0].set_xlim(0, window_s)
    axes[-1].set_xlabel(f"time since the first call of round {NUM_ROUNDS}, s (virtual)")
    handles = [Rectangle((0, 0), 1, 1, color=colour) for colour in _LEGEND.values()]
    figure.legend(handles, list(_LEGEND), loc="outside upper center", ncols=len(_LEGEND))
    return save(figure, folder, "lanes")


def _starts_s(trace: list[dict[str, Any]]) -> np.ndarray:
    """Return the arrival times of the last round's calls, s, f64[n]."""
    agents = [e for e in trace if e["ph"] == "b" and "output_tokens" in e.get("args", {})]
    return np.array(sorted(e["ts"] for e in agents)[-NUM_AGENTS:]) / 1e6


def _draw_slices(axis: Any, trace: list[dict[str, Any]], start_s: float, window_s: float) -> None:
    for row in _ROWS:
        bars: dict[str, list[tuple[float, float]]] = {}
        for event in _slices(trace, row):
            begin_s = event["ts"] / 1e6 - start_s
            end_s = min(begin_s + event["dur"] / 1e6, window_s)
            begin_s = max(begin_s, 0.0)
            if begin_s < end_s:
                bars.setdefault(_colour(event), []).append((begin_s, end_s - begin_s))
        for colour, spans in bars.items():
            axis.broken_barh(spans, (row - 0.38, 0.76), color=colour, lw=0.3)


def _slices(trace: list[dict[str, Any]], row: int) -> Iterator[dict[str, Any]]:
    return (e for e in trace if e["ph"] == "X" and e["pid"] == 1 and e["tid"] == row)


def _colour(event: Mapping[str, Any]) -> str:
    if event["tid"] in _COLOURS:
        return _COLOURS[event["tid"]]
    return _PROMPT if event["args"]["prompt_tokens"] else _DECODE
