"""How far each method ends from a stationary point, by how unlike the nodes' functions are."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.minimax.part import Finding, Result, Status, short
from experiments.minimax.play import play
from experiments.minimax.problems import (
    Quadratic,
    gradients,
    heterogeneous,
    noisy_gradients,
    side_by_side,
)
from experiments.minimax.rivals import METHODS
from kvflow_jax.minimax import exponential

NUM_NODES, GAMMA, NOISE = 16, 0.5, 0.1
SPREADS = (0.0, 0.1, 0.3, 1.0, 3.0)
STEPS, QUICK_STEPS = 100_000, 10_000
JUDGED_SPREAD, RATIO_GOAL = 1.0, 1e6


def run(quick: bool) -> Result:
    """Run D-TiAda and D-AdaST on an exponential graph, all spreads side by side."""
    steps = QUICK_STEPS if quick else STEPS
    shown_after = [count for count in (1_000, 10_000, 100_000) if count <= steps]
    problem = side_by_side(*(heterogeneous(NUM_NODES, spread) for spread in SPREADS))
    figures: dict[str, Any] = {"spreads": SPREADS, "after": shown_after}
    table = [["|grad_x f|^2 after", *(f"{count:,}" for count in shown_after)]]
    for noise in (0.0,) if quick else (0.0, NOISE):
        for name in ("D-TiAda", "D-AdaST"):
            norms = _norms(name, problem, noise, steps)
            # With noise, the mean over the tenth of the steps that ends there.
            after = [
                norms[count // 10] if not noise else norms[count * 9 // 100 : count // 10].mean(0)
                for count in shown_after
            ]
            label = f"{name}, noise {noise:g}"
            figures[label] = np.transpose(after).tolist()
            table.extend(
                [f"{label}, spread {spread:g}", *map(short, row)]
                for spread, row in zip(SPREADS, figures[label], strict=True)
            )
    judged = SPREADS.index(JUDGED_SPREAD)
    ratio = figures["D-TiAda, noise 0"][judged][-1] / figures["D-AdaST, noise 0"][judged][-1]
    same = [figures[f"{name}, noise 0"][0][-1] for name in ("D-TiAda", "D-AdaST")]
    figures["ratio"] = ratio
    findings = [
        Finding(
            "without tracking a term stays that grows with how unlike the nodes are",
            Status.MEMORY,
            f"{NUM_NODES} nodes, spread 1: D-TiAda over D-AdaST = {short(ratio)} after "
            f"{steps:,} steps",
            f">= {RATIO_GOAL:g} after {STEPS:,} steps",
            bool(ratio >= RATIO_GOAL) if steps == STEPS else None,
        ),
        Finding(
            "alike nodes need no tracking",
            Status.DERIVED,
            f"spread 0: {short(same[0])} and {short(same[1])}",
        ),
    ]
    if not quick:
        noisy = [figures[f"{name}, noise {NOISE:g}"][judged][-1] for name in ("D-TiAda", "D-AdaST")]
        findings.append(
            Finding(
                "with noise, too",
                Status.DERIVED,
                f"noise {NOISE:g}, spread 1: {short(noisy[0])} and {short(noisy[1])}",
            )
        )
    return Result(findings, figures, table)


def _norms(name: str, problem: Quadratic, noise: float, steps: int) -> np.ndarray:
    """Return |grad_x f|^2 at the mean after every tenth step, f64[k, spreads]."""
    begin = np.ones((NUM_NODES, len(SPREADS)))
    trace = play(
        name,
        METHODS[name].rule(GAMMA, GAMMA, start=0.0),
        exponential(NUM_NODES),
        noisy_gradients if noise else gradients,
        problem.with_noise(noise) if noise else problem.data,
        begin,
        begin,
        steps=steps,
        every=10,
        is_side_by_side=True,
    )
    return problem.squared_gradient(trace.x, trace.y)
