"""The paper's figure 1: two nodes with one quadratic each, and a line of stationary points."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.minimax.part import Finding, Result, Status, rounded, short, spaced
from experiments.minimax.play import Trace, play
from experiments.minimax.problems import gradients, two_nodes
from experiments.minimax.rivals import METHODS
from kvflow_jax.minimax import full

STEPS = 100_000  # of the quick run, too: the demanded figures are of these
EACH_OF_FIRST, NUM_SHOWN = 40, 80  # records that the figures show
SHOWN_AFTER = (0, 1_000, 10_000, 100_000)
GAMMA = 0.1  # of both players, as in the figure
# A stepsize of x that suits the ratio of the constants, which only a constant stepsize needs.
SMALL_GAMMA_X = 0.02
ADAPTIVE_GOAL, STUCK_ABOVE = 1e-20, 1e-2
# Label, method, gamma_x.
RUNS = (
    ("D-SGDA", "D-SGDA", GAMMA),
    ("D-SGDA, gamma_x .02", "D-SGDA", SMALL_GAMMA_X),
    ("GT-DA, gamma_x .02", "GT-DA", SMALL_GAMMA_X),
    ("DM-HSGD, gamma_x .02", "DM-HSGD", SMALL_GAMMA_X),
    ("D-AdaGrad", "D-AdaGrad", GAMMA),
    ("D-NeAda", "D-NeAda", GAMMA),
    ("D-TiAda", "D-TiAda", GAMMA),
    ("D-AdaST", "D-AdaST", GAMMA),
)
QUICK_LABELS = ("D-SGDA", "D-SGDA, gamma_x .02", "D-TiAda", "D-AdaST")


def run(quick: bool) -> Result:
    """Run all methods from (0, 0), ``start`` 0; the quick run leaves out those of no demand."""
    problem = two_nodes()
    begin = np.zeros(2)
    figures: dict[str, Any] = {}
    for label, name, gamma_x in RUNS:
        if quick and label not in QUICK_LABELS:
            continue
        method = METHODS[name]
        # Of a budget of calls for gradients, the same for all.
        steps = STEPS // method.calls_per_step
        trace = play(
            name,
            method.rule(gamma_x, GAMMA, start=0.0),
            full(2),
            gradients,
            problem.data,
            begin,
            begin,
            steps=steps,
            every=1,
        )
        norms = problem.squared_gradient(trace.x, trace.y)
        figures[label] = _summary(trace, norms, method.calls_per_step)
    stuck, reached = figures["D-TiAda"]["after"][-1], figures["D-AdaST"]["after"][-1]
    untracked, tracked = (figures[name]["zeta"] for name in ("D-TiAda", "D-AdaST"))
    constant = figures["D-SGDA, gamma_x .02"]["after"]
    findings = [
        Finding(
            "fig. 1: D-AdaST reaches the line of stationary points",
            Status.CERTAIN,
            f"|grad_x f|^2 = {short(reached)} after {STEPS:,} steps",
            f"<= {ADAPTIVE_GOAL:g}",
            bool(reached <= ADAPTIVE_GOAL),
        ),
        Finding(
            "fig. 1: D-TiAda does not",
            Status.CERTAIN,
            f"|grad_x f|^2 = {short(stuck)}",
            f"> {STUCK_ABOVE:g}",
            bool(stuck > STUCK_ABOVE),
        ),
        Finding(
            "fig. 1: zeta_v^2 does not converge for D-TiAda, vanishes with tracking",
            Status.CERTAIN,
            f"D-TiAda {short(max(untracked))} at most, {short(untracked[-1])} at the end; D-AdaST "
            f"{short(max(tracked))} throughout",
        ),
        Finding(
            "constant stepsizes depend on the problem's constants",
            Status.CERTAIN,
            f"D-SGDA diverges with gamma_x .1; with .02 it is at {short(constant[1])} after 1,000 "
            f"steps, before D-AdaST ({short(figures['D-AdaST']['after'][1])})",
        ),
    ]
    return Result(
        findings,
        figures,
        _table(figures),
        {"quadratic_dadast_gradient": reached, "quadratic_dtiada_gradient": stuck},
    )


def _summary(trace: Trace, norms: np.ndarray, calls: int) -> dict[str, Any]:
    """Return what the table and the figures show of a run, by calls for gradients."""
    # Each of the first records, in which the players swing, then ever fewer.
    shown = np.array([*range(EACH_OF_FIRST), *spaced(EACH_OF_FIRST, len(norms) - 1, NUM_SHOWN)])
    after = [
        float(norms[index // calls]) if index // calls < len(norms) else None
        for index in SHOWN_AFTER
    ]
    return {
        "after": after,
        "diverged_by": trace.diverged_by,
        "calls": (trace.steps[shown] * calls).tolist(),
        "x": rounded(trace.x.mean(0)[shown]),
        "y": rounded(trace.y.mean(0)[shown]),
        "squared_gradient": rounded(norms[shown]),
        "zeta": [] if trace.zeta is None else rounded(trace.zeta[shown[1:] - 1]),
    }


def _table(figures: dict[str, Any]) -> list[list[str]]:
    """Return |grad_x f|^2 at the mean of the nodes by method and calls for gradients."""
    header = ["|grad_x f|^2 after", *(f"{steps:,}" for steps in SHOWN_AFTER), "zeta_v^2"]
    rows = [header]
    for label, figure in figures.items():
        cells = ["diverged" if value is None else short(value) for value in figure["after"]]
        rows.append([label, *cells, short(figure["zeta"][-1]) if figure["zeta"] else "0"])
    return rows
