"""Which stepsizes work, over five decades: the same for both players, all methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.minimax.part import Finding, Result, Status, short
from experiments.minimax.play import play
from experiments.minimax.problems import heterogeneous, noisy_gradients
from experiments.minimax.rivals import METHODS
from experiments.minimax.seeds import NUM_SEEDS, Interval, interval
from experiments.minimax.side_by_side import repeat
from kvflow_jax.minimax import exponential

NUM_NODES, SPREAD, NOISE = 16, 1.0, 0.1
GAMMAS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
QUICK_GAMMAS = (0.1,)
BUDGETS, QUICK_BUDGETS = (10_000, 100_000), (1_000,)  # calls for gradients at a node
CALLS_PER_RECORD = 10
QUICK_METHODS = ("D-SGDA", "D-TiAda", "D-AdaST")
# |grad_x f|^2: 1 at the start, below SMALL a stepsize is counted as working.
SMALL, DIVERGED = 1e-2, 1e12


def run(quick: bool) -> Result:
    """Run all methods with five seeds; the mean over the last tenth of the calls counts."""
    budgets, gammas = (QUICK_BUDGETS, QUICK_GAMMAS) if quick else (BUDGETS, GAMMAS)
    # For scalar players the coordinate-wise variant is D-AdaST.
    names = QUICK_METHODS if quick else [name for name in METHODS if "coordinate" not in name]
    ends = {name: [_ends(name, gamma, budgets) for gamma in gammas] for name in names}
    figures: dict[str, Any] = {"gammas": gammas, "budgets": budgets}
    table = [["|grad_x f|^2, gamma_x = gamma_y", *(f"{gamma:g}" for gamma in gammas)]]
    for index, budget in enumerate(budgets):
        of_budget = {name: [row[index] for row in rows] for name, rows in ends.items()}
        figures[f"after {budget} calls"] = {
            name: {
                "mean": [one.mean if one else None for one in row],
                "half_width": [one.half_width if one else None for one in row],
            }
            for name, row in of_budget.items()
        }
        table.extend(
            [f"{name}, {budget:,} calls", *(short(one.mean) if one else "diverged" for one in row)]
            for name, row in of_budget.items()
        )
    last = {
        name: [row[-1].mean if row[-1] else math.inf for row in rows] for name, rows in ends.items()
    }
    return Result(_findings(last, gammas, budgets[-1]), figures, table)


def _findings(last: dict[str, list[float]], gammas: Sequence[float], budget: int) -> list[Finding]:
    """Return the findings.

    Args:
        last: |grad_x f|^2 of each method by stepsize, inf where it diverged.
        gammas: the stepsizes.
        budget: calls for gradients.
    """
    works = {name: sum(value < SMALL for value in row) for name, row in last.items()}
    winners = [min(last, key=lambda name: last[name][k]) for k in range(len(gammas))]
    return [
        Finding(
            "D-AdaST needs no constant of the problem for its stepsizes",
            Status.CERTAIN,
            f"of {len(gammas)} stepsizes, below {SMALL:g} after {budget:,} calls: "
            + ", ".join(f"{name} {count}" for name, count in works.items()),
        ),
        Finding(
            "which method is best depends on the stepsize",
            Status.DERIVED,
            ", ".join(
                f"{gamma:g}: {winner}" for gamma, winner in zip(gammas, winners, strict=True)
            ),
        ),
    ]


def _ends(name: str, gamma: float, budgets: Sequence[int]) -> list[Interval | None]:
    """Return the mean |grad_x f|^2 over the last tenth of each budget; None: it had diverged."""
    method = METHODS[name]
    problem = heterogeneous(NUM_NODES, SPREAD)
    begin = np.ones((NUM_NODES, NUM_SEEDS))
    trace = play(
        name,
        method.rule(gamma, gamma, start=0.0),
        exponential(NUM_NODES),
        noisy_gradients,
        repeat(problem.with_noise(NOISE), NUM_SEEDS),
        begin,
        begin,
        steps=budgets[-1] // method.calls_per_step,
        every=CALLS_PER_RECORD // method.calls_per_step,
        is_side_by_side=True,
    )
    norms = problem.squared_gradient(trace.x, trace.y)
    ends: list[Interval | None] = []
    for budget in budgets:
        last = norms[budget * 9 // 10 // CALLS_PER_RECORD : budget // CALLS_PER_RECORD + 1]
        is_lost = len(norms) <= budget // CALLS_PER_RECORD or last.max() > DIVERGED
        ends.append(None if is_lost else interval(last.mean(0)))
    return ends
