"""Robust training over 20 nodes on three graphs (the paper's figures 3 and 5), on small digits.

The paper trains on MNIST. No package that we may rely on ships it, so these are scikit-learn's
digits. Its figure 4, a GAN on CIFAR-10, is left out: there is no CIFAR-10 here, and no classifier
that could judge generated images of 8 x 8 pixels honestly.

Every method has 4,000 calls for gradients a node. The adaptive ones run at the demanded stepsizes,
and all at the best of a sweep, which is taken on the exponential graph with the first seed. How
large the ratio to the rivals is depends on how unlike the nodes are; it is measured at three
shares of images that are dealt at random.
"""

from __future__ import annotations

from experiments.minimax.digits import setting
from experiments.minimax.digits.data import load
from experiments.minimax.digits.outcomes import Outcomes
from experiments.minimax.digits.summary import figures, findings, table
from experiments.minimax.digits.training import Trainer
from experiments.minimax.part import Result
from kvflow_jax.minimax import dense, directed_ring, exponential


def run(quick: bool) -> Result:
    """Train at the demanded stepsizes, then each method at the best of its sweep."""
    graphs = [exponential(setting.NUM_NODES)]
    if not quick:
        graphs = [directed_ring(setting.NUM_NODES), *graphs, dense(setting.NUM_NODES)]
    names = [graph.name for graph in graphs]
    seeds = setting.SEEDS[:1] if quick else setting.SEEDS
    calls = setting.QUICK_CALLS if quick else setting.CALLS
    trainer = Trainer(load(), graphs, calls)
    cells = setting.demanded(names, seeds)
    if quick:
        gammas = setting.QUICK_GAMMAS
        seen = Outcomes(trainer.train(cells + setting.tuned(gammas, names, seeds)))
    else:
        seen = Outcomes(trainer.train(cells + setting.sweep()))
        gammas = {method: seen.best_gamma(method) for method in setting.SWEEP}
        cells = setting.tuned(gammas, names, seeds)
        cells += [
            setting.mixed(method, share)
            for method in setting.ADAPTIVE
            for share in setting.MIXED_SHARES
        ]
        seen = seen.add(trainer.train(cell for cell in cells if cell not in seen.by_cell))
    ratios = {name: seen.ratio(name) for name in names}
    return Result(
        findings=findings(seen, ratios, gammas, is_quick=quick),
        figures=figures(seen, ratios, gammas, calls),
        table=table(seen, gammas, names, is_quick=quick),
        demanded={
            f"digits_ratio_{name}": ratios[name].mean
            for name in (() if quick else setting.JUDGED_GRAPHS)
        },
    )
