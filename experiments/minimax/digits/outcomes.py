"""All runs on the digits together: ratios, the best stepsizes, the winner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.minimax.digits.setting import (
    ADAPTIVE,
    EXPONENTIAL,
    GAMMA_X,
    MIXED_SHARES,
    OURS,
    SEEDS,
    SWEEP,
    mixed,
)
from experiments.minimax.digits.training import Cell, Outcome, Program


@dataclass(frozen=True)
class Ratio:
    """The best adaptive rival's squared gradient over D-AdaST's, both at the demanded stepsizes.

    A network that takes all digits for the same one is a stationary point, too. So a rival that
    has not learned to tell digits apart counts only if none has, and all ratios are 0 where it has
    and D-AdaST has not.

    Attributes:
        rival: of those, the one whose mean over the seeds is smallest.
        mean: ratio of the means over the seeds.
        lowest: smallest ratio of one seed.
        highest: largest ratio of one seed.
    """

    rival: str
    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Outcomes:
    """What all runs came to; None: a run diverged."""

    by_cell: Mapping[Cell, Outcome | None]

    def add(self, more: Mapping[Cell, Outcome | None]) -> Outcomes:
        """Return these and others."""
        return Outcomes({**self.by_cell, **more})

    def of(self, method: str, gamma_x: float, graph: str) -> list[Outcome | None]:
        """Return the runs with mostly two classes a node, one a seed."""
        program = Program(method, gamma_x, graph)
        cells = (Cell(program, seed) for seed in SEEDS)
        return [self.by_cell[cell] for cell in cells if cell in self.by_cell]

    def rank(self, method: str, gamma_x: float, graph: str) -> tuple[bool, float]:
        """Return what the best method has least of: is it untrained, and its squared gradient.

        The latter is at the end, the mean over the seeds, inf if one diverged.
        """
        return _rank(self.of(method, gamma_x, graph))

    def best_gamma(self, method: str) -> float:
        """Return the best gamma_x of the sweep, by ``rank``."""
        ranks = {
            gamma: _rank([self.by_cell[Cell(Program(method, gamma, EXPONENTIAL), SEEDS[0])]])
            for gamma in SWEEP[method]
        }
        return min(ranks, key=ranks.__getitem__)

    def ratio(self, graph: str) -> Ratio:
        """Return how D-AdaST and the best adaptive rival compare at the demanded stepsizes."""
        runs = {method: self.of(method, GAMMA_X, graph) for method in ADAPTIVE}
        rival, mean = _ratio(runs)
        pairs = zip(runs[rival], runs[OURS], strict=True)
        by_seed = [_end(theirs) / _end(one) if mean else 0.0 for theirs, one in pairs]
        return Ratio(rival, mean, min(by_seed), max(by_seed))

    def mixed_ratios(self) -> dict[float, tuple[str, float]]:
        """Return the best adaptive rival and its ratio, by share of images dealt at random."""
        return {
            share: _ratio({method: [self.by_cell[mixed(method, share)]] for method in ADAPTIVE})
            for share in MIXED_SHARES
        }


def _ratio(runs: Mapping[str, Sequence[Outcome | None]]) -> tuple[str, float]:
    """Return the best rival and its squared gradient over D-AdaST's, by ``rank``."""
    ranks = {method: _rank(some) for method, some in runs.items()}
    is_untrained, ours = ranks.pop(OURS)
    rival = min(ranks, key=ranks.__getitem__)
    is_rival_untrained, theirs = ranks[rival]
    if is_untrained and not is_rival_untrained:
        return rival, 0.0
    return rival, theirs / ours


def _rank(runs: Sequence[Outcome | None]) -> tuple[bool, float]:
    """Return ``Outcomes.rank`` of some runs."""
    is_trained = all(one is not None and one.is_trained for one in runs)
    return not is_trained, float(np.mean([_end(one) for one in runs]))


def _end(outcome: Outcome | None) -> float:
    """Return the squared gradient at the end of a run, inf if it diverged."""
    return float("inf") if outcome is None else outcome.squared_gradient
