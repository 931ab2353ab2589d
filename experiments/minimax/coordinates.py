"""The coordinate-wise variant where the coordinates' scales differ by a factor of a thousand."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.minimax.part import Finding, Result, Status, short
from experiments.minimax.play import play
from experiments.minimax.problems import gradients, heterogeneous, scaled
from experiments.minimax.rivals import METHODS
from kvflow_jax.minimax import exponential

NUM_NODES, SPREAD, GAMMA = 16, 1.0, 0.5
FACTORS = np.logspace(0, -3, 8)  # of the functions of each coordinate
STEPS, QUICK_STEPS = 100_000, 10_000
NAMES = ("D-TiAda", "D-AdaST", "D-AdaST, coordinate-wise")


def run(quick: bool) -> Result:
    """Run players in R^8 from 1 in each coordinate; the saddle is at 0."""
    steps = QUICK_STEPS if quick else STEPS
    shown_after = [count for count in (1_000, 10_000, 100_000) if count <= steps]
    problem = scaled(heterogeneous(NUM_NODES, SPREAD), FACTORS)
    begin = np.ones((NUM_NODES, len(FACTORS)))
    figures: dict[str, Any] = {"after": shown_after}
    table = [
        [
            f"after (|x|^2 is {len(FACTORS)} at first)",
            *(f"|x|^2, {count:,}" for count in shown_after),
            *(f"|grad_x f|^2, {count:,}" for count in shown_after),
        ]
    ]
    for name in NAMES[1:] if quick else NAMES:
        trace = play(
            name,
            METHODS[name].rule(GAMMA, GAMMA, start=0.0),
            exponential(NUM_NODES),
            gradients,
            problem.data,
            begin,
            begin,
            steps=steps,
            every=10,
        )
        records = [count // 10 for count in shown_after]
        distance = (trace.x.mean(0) ** 2).sum(1)[records].tolist()
        norms = problem.squared_gradient(trace.x, trace.y).sum(1)[records].tolist()
        figures[name] = {"squared_distance": distance, "squared_gradient": norms}
        table.append([name, *map(short, (*distance, *norms))])
    whole, each = (figures[name] for name in NAMES[1:])
    findings = [
        Finding(
            "the appendix has a coordinate-wise variant; its text could not be had",
            Status.MEMORY,
            f"coordinates scaled by 1 to 1e-3: after {steps:,} steps |x|^2 from the saddle "
            f"{short(each['squared_distance'][-1])}, with one stepsize for all "
            f"{short(whole['squared_distance'][-1])}; |grad_x f|^2 "
            f"{short(each['squared_gradient'][-1])} and {short(whole['squared_gradient'][-1])}",
        )
    ]
    return Result(findings, figures, table)
