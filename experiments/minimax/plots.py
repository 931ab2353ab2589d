"""Figures of the comparison, as the paper has them; each from its part of the JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.drawing import save

# The Okabe-Ito palette, which is distinguishable under most colour vision deficiencies.
COLOURS = {
    "D-SGDA": "#7f7f7f",
    "GT-DA": "#e69f00",
    "DM-HSGD": "#cc79a7",
    "D-AdaGrad": "#56b4e9",
    "D-NeAda": "#f0e442",
    "D-TiAda": "#d55e00",
    "D-AdaST": "#0072b2",
    "centralised": "#000000",
}
DASHES = ("-", "--", "-.", ":")
SMALLEST = 1e-32  # drawn for a squared gradient of 0


def two_nodes(figures: Mapping[str, Any], folder: Path) -> str:
    """Draw trajectories with the line of stationary points, gradients, and zeta_v^2."""
    figure, (plane, gradient, zeta) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    shown = [label for label in figures if label.partition(",")[0] in ("D-TiAda", "D-AdaST")]
    shown += [label for label in figures if label.startswith("D-SGDA,")]
    for label in shown:
        run = figures[label]
        style = _style(label)
        plane.plot(run["x"], run["y"], **style, lw=1, marker=".", ms=3, label=label)
        plane.plot(run["x"][-1], run["y"][-1], color=style["color"], marker="o", ms=7)
    plane.plot(0, 0, "k^", ms=6, label="start")
    low, high = plane.get_xlim()
    line = np.array([low, high])
    plane.plot(line, 5 / 3 * line + 2 / 3, "k--", lw=1, label="stationary points", zorder=0)
    plane.set_xlabel("x, mean of the nodes")
    plane.set_ylabel("y")
    plane.legend(fontsize=7)
    plane.set_title("Trajectories, discs at the end", loc="left")
    for label, run in figures.items():
        norms = np.maximum(run["squared_gradient"], SMALLEST)
        gradient.loglog(np.maximum(run["calls"], 1), norms, **_style(label), label=label)
        if run["zeta"] and label != "D-NeAda":
            zeta.semilogx(run["calls"][1:], run["zeta"], **_style(label), label=label)
    gradient.set_ylim(SMALLEST, 1e6)
    gradient.set_xlabel("calls for gradients")
    gradient.set_title(r"$|\nabla_x f|^2$ at the mean", loc="left")
    gradient.legend(fontsize=7)
    # An axis that has 0, too, where D-AdaST's is.
    zeta.set_yscale("symlog", linthresh=1e-2)
    zeta.set_ylim(-1e-3)
    zeta.set_xlabel("calls for gradients")
    zeta.set_title(r"Inconsistency of stepsizes $\zeta_v^2$ (0 for D-SGDA)", loc="left")
    zeta.legend(fontsize=7)
    return save(figure, folder, "minimax-two-nodes")


def heterogeneity(figures: Mapping[str, Any], folder: Path) -> str:
    """Draw where D-TiAda and D-AdaST end by how unlike the nodes are."""
    figure, axis = plt.subplots(figsize=(5, 3.4), layout="constrained")
    for label in figures:
        name, _, noise = label.partition(", noise ")
        if not noise:
            continue
        ends = np.array(figures[label])[:, -1]
        style = _style(name) | {"ls": "-" if noise == "0" else "--"}
        pairs = list(zip(figures["spreads"], ends, strict=True))[1:]
        axis.loglog(*zip(*pairs, strict=True), **style, marker="o", ms=4, label=label)
    axis.set_xlabel("spread of the nodes' functions")
    axis.set_title(rf"$|\nabla_x f|^2$ after {figures['after'][-1]:,} steps, 16 nodes", loc="left")
    axis.legend(fontsize=8)
    return save(figure, folder, "minimax-heterogeneity")


def rate(figures: Mapping[str, Any], folder: Path) -> str:
    """Draw how the squared gradient falls with noise: D-AdaST by graph, and beside its rivals."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    budgets = np.array(figures["curve_budgets"])
    by_graph, beside = axes
    num_graphs = 0
    for label, run in figures["methods"].items():
        name, _, graph = label.partition(", ")
        panels = [(beside, label.removesuffix(", exponential"), _style(label))]
        if name == "D-AdaST":
            style = {"color": list(COLOURS.values())[num_graphs], "ls": DASHES[num_graphs]}
            num_graphs += 1
            is_exponential = graph.startswith("exponential")
            ours = [(beside, name, _style(name))] if is_exponential else []
            panels = [(by_graph, graph, style), *ours]
        elif name.startswith("centralised"):
            panels.append((by_graph, label, _style(label)))
        mean, half = np.array(run["curve"]), np.array(run["curve_half_width"])
        bottom = np.maximum(mean - half, mean / 10)
        for axis, shown, style in panels:
            axis.loglog(budgets, mean, **style, label=shown)
            axis.fill_between(budgets, bottom, mean + half, color=style["color"], alpha=0.12)
    first = figures["methods"]["centralised TiAda"]["curve"][0]
    for axis, title in zip(
        axes, ("D-AdaST by graph", "Beside its rivals, exponential graph"), strict=True
    ):
        slope = 0.3 * first * (budgets / budgets[0]) ** -0.4
        axis.loglog(budgets, slope, "k:", lw=1, label=r"$K^{-0.4}$, theory at worst")
        axis.set_xlabel("calls for gradients K")
        axis.set_title(title, loc="left")
        axis.legend(fontsize=7, ncols=2)
    # Room for the legends.
    axes[0].set_ylim(top=2)
    axes[0].set_ylabel(r"mean $|\nabla_x f|^2$, second half of K")
    return save(figure, folder, "minimax-rate")


def stepsizes(figures: Mapping[str, Any], folder: Path) -> str:
    """Draw where each method ends by its stepsize."""
    budgets = figures["budgets"]
    figure, axes = plt.subplots(
        1, len(budgets), figsize=(5 * len(budgets), 3.6), sharey=True, layout="constrained"
    )
    for axis, budget in zip(np.atleast_1d(axes), budgets, strict=True):
        for name, row in figures[f"after {budget} calls"].items():
            pairs = [
                (gamma, mean, half)
                for gamma, mean, half in zip(
                    figures["gammas"], row["mean"], row["half_width"], strict=True
                )
                if mean is not None
            ]
            if pairs:
                gammas, means, halves = zip(*pairs, strict=True)
                lower = np.minimum(halves, 0.9 * np.array(means))
                axis.errorbar(
                    gammas, means, (lower, halves), **_style(name), marker="o", ms=4, label=name
                )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel(r"$\gamma_x = \gamma_y$")
        axis.set_title(f"After {budget:,} calls (no mark: diverged)", loc="left")
    np.atleast_1d(axes)[0].set_ylabel(r"$|\nabla_x f|^2$, last tenth")
    np.atleast_1d(axes)[-1].legend(fontsize=7)
    return save(figure, folder, "minimax-stepsizes")


def digits(figures: Mapping[str, Any], folder: Path) -> str:
    """Draw robust training by graph: adaptive methods where demanded, constant ones at their best.

    Curves are means over the seeds that were played there.
    """
    graphs = list(figures["ratios"])
    figure, axes = plt.subplots(
        1, len(graphs), figsize=(4.2 * len(graphs), 3.6), sharey=True, layout="constrained"
    )
    for axis, graph in zip(np.atleast_1d(axes), graphs, strict=True):
        for (method, gamma), dashes in _digits_shown(figures).items():
            curves = [
                run["curve"]
                for run in figures["runs"]
                if (run["method"], run["gamma_x"], run["graph"]) == (method, gamma, graph)
                and not run["mixed_share"]
                and "curve" in run
            ]
            if curves:
                mean = np.mean(curves, axis=0)
                calls = np.arange(1, len(mean) + 1) * figures["calls"] / len(mean)
                label = f"{method}, {gamma:g}"
                axis.semilogy(calls, mean, color=COLOURS[method], ls=dashes, label=label)
        axis.set_xlabel("calls for gradients")
        axis.set_title(graph, loc="left")
    np.atleast_1d(axes)[0].set_ylabel(r"$|\nabla_x f|^2$ at the mean")
    np.atleast_1d(axes)[-1].legend(
        fontsize=7,
        title="$\\gamma_x$; dashed: best of a sweep",
        title_fontsize=7,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
    )
    return save(figure, folder, "minimax-digits")


# By the part whose figures they draw.
DRAW: dict[str, Callable[[Mapping[str, Any], Path], str]] = {
    "two-nodes": two_nodes,
    "heterogeneity": heterogeneity,
    "rate": rate,
    "stepsizes": stepsizes,
    "digits": digits,
}


def _digits_shown(figures: Mapping[str, Any]) -> dict[tuple[str, float], str]:
    """Return the dashes of each method and gamma_x that is drawn for the digits."""
    shown = {(method, figures["gamma_x"]): "-" for method in figures["adaptive"]}
    best = figures["best_gamma_x"].items()
    return shown | {pair: "--" for pair in best if pair[0] not in figures["adaptive"]}


def _style(label: str) -> dict[str, Any]:
    """Return the colour of a method, and dashes for one whose label says more than its name."""
    name = label.partition(",")[0].split()[0]
    return {"color": COLOURS[name], "ls": "-" if label in COLOURS else "--"}
