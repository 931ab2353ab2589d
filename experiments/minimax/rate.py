"""How fast the squared gradient falls with noise, by graph, beside the centralised method."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from experiments.minimax.part import Finding, Result, Status, rounded, short, spaced
from experiments.minimax.play import play
from experiments.minimax.problems import heterogeneous, noisy_gradients
from experiments.minimax.rivals import METHODS, centralised
from experiments.minimax.seeds import NUM_SEEDS, interval
from experiments.minimax.side_by_side import repeat
from kvflow_jax.minimax import Graph, directed_ring, exponential, full, ring
from kvflow_jax.minimax.nodes import Gradients

NUM_NODES, SPREAD, NOISE, GAMMA = 16, 1.0, 1.0, 0.5
GRAPHS = (directed_ring, ring, exponential, full)
BUDGETS, QUICK_BUDGETS = (1_000, 10_000, 100_000), (1_000, 10_000)  # calls for gradients at a node
CALLS_PER_RECORD, NUM_SHOWN = 10, 25
EXPONENT_RANGE, SPREAD_GOAL = (-0.6, -0.38), 0.10
# Label, method, stepsizes of x and y.
RIVALS = (
    ("D-TiAda", "D-TiAda", (GAMMA, GAMMA)),
    ("D-AdaGrad", "D-AdaGrad", (GAMMA, GAMMA)),
    ("D-NeAda", "D-NeAda", (GAMMA, GAMMA)),
    ("D-SGDA .02, .1", "D-SGDA", (0.02, 0.1)),
    ("GT-DA .02, .1", "GT-DA", (0.02, 0.1)),
    ("DM-HSGD .02, .1", "DM-HSGD", (0.02, 0.1)),
)


def run(quick: bool) -> Result:
    """Run all methods with noise of deviation 1 in each node's gradients, five seeds."""
    budgets = QUICK_BUDGETS if quick else BUDGETS
    settings: list[tuple[str, str, tuple[float, float], Graph | None]] = [
        ("centralised TiAda", "D-TiAda", (GAMMA, GAMMA), None)
    ]
    for of_size in GRAPHS[::3] if quick else GRAPHS:
        one = of_size(NUM_NODES)
        label = f"D-AdaST, {one.name} (rho {one.rho:.2g})"
        settings.append((label, "D-AdaST", (GAMMA, GAMMA), one))
    for label, name, gammas in () if quick else RIVALS:
        settings.append((f"{label}, exponential", name, gammas, exponential(NUM_NODES)))
    table = [["mean |grad_x f|^2", *(f"K = {budget:,}" for budget in budgets), "exponent"]]
    methods: dict[str, Any] = {}
    shown = spaced(budgets[0], budgets[-1], NUM_SHOWN)
    for label, name, gammas, graph in settings:
        norms = _norms(name, gammas, graph, budgets[-1])
        by_budget = [interval(_second_half(norms, budget)) for budget in budgets]
        last, before = (_second_half(norms, budget) for budget in (budgets[-1], budgets[-2]))
        exponent = interval(np.log10(last / before))
        curve = [interval(_second_half(norms, budget)) for budget in shown]
        methods[label] = {
            "mean": [one.mean for one in by_budget],
            "half_width": [one.half_width for one in by_budget],
            "exponent": exponent.mean,
            "exponent_half_width": exponent.half_width,
            "curve": rounded(one.mean for one in curve),
            "curve_half_width": rounded(one.half_width for one in curve),
        }
        cells = f"{exponent.mean:.2f} ±{exponent.half_width:.2f}"
        table.append([label, *map(str, by_budget), cells])
    figures = {"budgets": budgets, "curve_budgets": shown, "methods": methods}
    return Result(_findings(methods, is_judged=not quick), figures, table)


def _norms(name: str, gammas: tuple[float, float], graph: Graph | None, budget: int) -> np.ndarray:
    """Return |grad_x f|^2 at the mean after every tenth call for gradients, f64[k, seeds].

    Args:
        graph: None: one node that has the mean of all nodes' gradients.
        budget: calls for gradients at a node.
    """
    method = METHODS[name]
    problem = heterogeneous(NUM_NODES, SPREAD)
    data = repeat(problem.with_noise(NOISE), NUM_SEEDS)
    noisy: Gradients[Any, Any, Any] = noisy_gradients
    if graph is None:
        # One node, whose data are those of all.
        graph, noisy = full(1), centralised(noisy)
        data = jax.tree.map(lambda leaf: leaf[None], data)
    begin = np.ones((graph.num_nodes, NUM_SEEDS))
    trace = play(
        name,
        method.rule(*gammas, start=0.0),
        graph,
        noisy,
        data,
        begin,
        begin,
        steps=budget // method.calls_per_step,
        every=CALLS_PER_RECORD // method.calls_per_step,
        is_side_by_side=True,
    )
    return problem.squared_gradient(trace.x, trace.y)


def _second_half(norms: np.ndarray, budget: int) -> np.ndarray:
    """Return the mean over the second half of a budget of calls, f64[seeds]."""
    end = budget // CALLS_PER_RECORD
    mean: np.ndarray = norms[end // 2 : end + 1].mean(0)
    return mean


def _findings(methods: dict[str, Any], *, is_judged: bool) -> list[Finding]:
    """Return the findings; the quick run is too short to be judged."""
    ours = [label for label in methods if label.startswith("D-AdaST")]
    falls = [methods[label]["exponent"] for label in ours]
    last = [methods[label]["mean"][-1] for label in ours]
    apart = max(last) / min(last) - 1
    central = methods["centralised TiAda"]
    low, high = EXPONENT_RANGE
    findings = [
        Finding(
            "thm. 2: at worst K^-(1 - alpha) = K^-0.40 with alpha .6",
            Status.MEMORY,
            f"exponents of the last decade {min(falls):.2f} to {max(falls):.2f} on "
            f"{len(ours)} graphs; centralised {central['exponent']:.2f}",
            f"in [{low}, {high}]",
            all(low <= fall <= high for fall in falls) if is_judged else None,
        ),
        Finding(
            "the rate is that of the centralised method",
            Status.CERTAIN,
            f"at the last K {short(min(last))} to {short(max(last))}, centralised "
            f"{short(central['mean'][-1])}: a node's accumulators hold the noise of one node, the "
            "centralised method's that of the mean, so D-AdaST's steps are the smaller ones",
        ),
        Finding(
            "thm. 2: once K is large the graph does not matter (quasi-independence)",
            Status.MEMORY,
            f"graphs within {apart:.1%} of each other at the last K",
            f"<= {SPREAD_GOAL:.0%}",
            apart <= SPREAD_GOAL if is_judged else None,
        ),
    ]
    constant = {label: value["mean"][-1] for label, value in methods.items() if " .02" in label}
    if constant:
        best = min(constant, key=lambda label: constant[label])
        findings.append(
            Finding(
                "constant stepsizes end at a noise floor",
                Status.DERIVED,
                f"the best of them, {best}: {short(constant[best])} at the last K; D-AdaST "
                f"{short(min(last))}",
            )
        )
    return findings
