"""Made-up outcomes of runs."""

import numpy as np

from experiments.minimax.digits.outcomes import Outcomes
from experiments.minimax.digits.setting import (
    ADAPTIVE,
    CONSTANT,
    MIXED_SHARES,
    SEEDS,
    demanded,
    mixed,
    sweep,
    tuned,
)
from experiments.minimax.digits.training import NUM_RECORDS, Outcome

GRAPHS = ("directed ring", "exponential", "dense")
BEST = dict.fromkeys(ADAPTIVE, 10.0) | dict.fromkeys(CONSTANT, 0.1)
# |grad_x f|^2 of each method, wherever it is played.
ENDS = {"D-AdaGrad": 0.2, "D-NeAda": 0.5, "D-TiAda": 0.4, "D-AdaST": 0.02, "D-SGDA": 0.01}


def outcome(end, train_accuracy=0.9, zeta=0.5):
    return Outcome(np.full(NUM_RECORDS, end), train_accuracy, 0.8, 0.3, zeta)


def played(changes=None):
    """Return outcomes of all runs; ``changes`` maps cells to others."""
    cells = [*demanded(GRAPHS, SEEDS), *sweep(), *tuned(BEST, GRAPHS, SEEDS)]
    cells += [mixed(method, share) for method in ADAPTIVE for share in MIXED_SHARES]
    by_cell = {
        cell: outcome(
            ENDS.get(cell.program.method, 1.0) * (1 + cell.seed),
            zeta=None if cell.program.method in CONSTANT else 0.5,
        )
        for cell in cells
    }
    return Outcomes(by_cell | (changes or {}))
