"""Theorem 1: a problem at which D-TiAda never moves, by the exponents of the method."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.minimax.part import Finding, Result, Status, short
from experiments.minimax.play import play
from experiments.minimax.problems import frozen, gradients
from experiments.minimax.rivals import DTiAda
from kvflow_jax.minimax import DAdaST, full
from kvflow_jax.minimax.rule import Rule

EXPONENTS = ((0.6, 0.4), (0.7, 0.3), (0.65, 0.4))  # alpha, beta
STEPS, JUDGED_STEPS = 100_000, 10_000
SLOPE, BEGIN_X, GAMMA = 0.99, 10.0, 0.1
SHOWN_AFTER = (0, 1_000, 10_000, 100_000)
# Relative to the first |grad_x f|^2: D-TiAda's largest change, D-AdaST's value at the judged step.
CONSTANT_TO, LEFT_BELOW = 1e-9, 0.5


def run(quick: bool) -> Result:
    """Run D-TiAda and D-AdaST on the line y = 0.99 x, with accumulators that begin at 0."""
    steps = JUDGED_STEPS if quick else STEPS
    figures: dict[str, Any] = {}
    shown_after = [count for count in SHOWN_AFTER if count <= steps]
    table = [["|grad_x f|^2 after", *(f"{count:,}" for count in shown_after)]]
    findings = []
    for alpha, beta in EXPONENTS[:1] if quick else EXPONENTS:
        problem = frozen(alpha, beta, SLOPE)
        begin = np.full(3, BEGIN_X), np.full(3, SLOPE * BEGIN_X)
        norms = {}
        rules: dict[str, Rule[Any]] = {
            "D-TiAda": DTiAda(GAMMA, GAMMA, alpha, beta, start=0.0),
            "D-AdaST": DAdaST(GAMMA, GAMMA, alpha, beta, start=0.0),
        }
        for name, rule in rules.items():
            trace = play(
                name, rule, full(3), gradients, problem.data, *begin, steps=steps, every=10
            )
            norms[name] = problem.squared_gradient(trace.x, trace.y)
            after = [float(norms[name][count // 10]) for count in shown_after]
            figures[f"{name}, alpha {alpha}, beta {beta}"] = after
            table.append([f"{name}, alpha {alpha}, beta {beta}", *map(short, after)])
        first = norms["D-TiAda"][0]
        deviation = np.abs(norms["D-TiAda"][: JUDGED_STEPS // 10 + 1] / first - 1).max()
        left = norms["D-AdaST"][JUDGED_STEPS // 10] / first
        findings.append(
            Finding(
                f"thm. 1: D-TiAda keeps its first gradient for ever (alpha {alpha}, beta {beta}); "
                "own functions, the paper's could not be had",
                Status.MEMORY,
                f"changed by {deviation:.0e} of itself in {JUDGED_STEPS:,} steps; D-AdaST is at "
                f"{left:.0%} of it",
                f"<= {CONSTANT_TO:g}, and D-AdaST leaves it",
                bool(deviation <= CONSTANT_TO and left < LEFT_BELOW),
            )
        )
        figures[f"deviation, alpha {alpha}, beta {beta}"] = float(deviation)
    return Result(findings, figures, table)
