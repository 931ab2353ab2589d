"""Which runs the comparison on the digits has: methods, stepsizes, graphs, seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from experiments.minimax.digits.training import Cell, Program

NUM_NODES, CALLS, QUICK_CALLS = 20, 4000, 160
SEEDS = (0, 1, 2)
GAMMA_X = 3.0  # the demanded one; gamma_y is .3
OURS = "D-AdaST"
ADAPTIVE = ("D-AdaGrad", "D-NeAda", "D-TiAda", OURS)
CONSTANT = ("D-SGDA", "GT-DA", "DM-HSGD")
SWEEP: Mapping[str, tuple[float, ...]] = {
    **dict.fromkeys(ADAPTIVE, (1.0, GAMMA_X, 10.0, 30.0, 100.0)),
    **dict.fromkeys(CONSTANT, (0.03, 0.1, 0.3, 1.0)),
}
# Runs too short for a sweep have these.
QUICK_GAMMAS = dict.fromkeys(CONSTANT, 0.1)
EXPONENTIAL = "exponential"
JUDGED_GRAPHS, RATIO_GOAL = (EXPONENTIAL, "dense"), 5.0
# Shares of a node's images that are dealt at random: from mostly two classes to nodes all alike.
MIXED_SHARES = (0.0, 0.1, 1.0)


def demanded(graphs: Iterable[str], seeds: Sequence[int]) -> list[Cell]:
    """Return the runs of the adaptive methods at the demanded stepsizes."""
    return [
        Cell(Program(method, GAMMA_X, graph), seed)
        for graph in graphs
        for method in ADAPTIVE
        for seed in seeds
    ]


def sweep() -> list[Cell]:
    """Return the runs of the sweep: every method, on the exponential graph, with one seed."""
    return [
        Cell(Program(method, gamma, EXPONENTIAL), SEEDS[0])
        for method, gammas in SWEEP.items()
        for gamma in gammas
    ]


def tuned(gammas: Mapping[str, float], graphs: Iterable[str], seeds: Sequence[int]) -> list[Cell]:
    """Return the runs with a gamma_x for each method: all seeds on one graph, one on the others."""
    return [
        Cell(Program(method, gamma, graph), seed)
        for graph in graphs
        for method, gamma in gammas.items()
        for seed in (seeds if graph == EXPONENTIAL else seeds[:1])
    ]


def mixed(method: str, share: float) -> Cell:
    """Return the run at the demanded stepsizes with a share of the images dealt at random."""
    return Cell(Program(method, GAMMA_X, EXPONENTIAL), SEEDS[0], share)
