"""Train the network at all nodes by one method, and judge the mean of the nodes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.minimax.digits.data import Digits, Images, divide
from experiments.minimax.digits.evaluation import accuracy, attack, squared_gradients
from experiments.minimax.digits.network import gradients, start
from experiments.minimax.play import inconsistency
from experiments.minimax.rivals import METHODS
from kvflow_jax.errors import DivergenceError
from kvflow_jax.minimax import Graph, Run, over_axis, replicate

NUM_RECORDS = 40
# Single records are noisy: a run ends with the mean over the last quarter of them.
NUM_LAST = 10
# gamma_x over gamma_y at the demanded point, 3 and .3, and in every sweep.
GAMMA_RATIO = 10
# A network that gives all images the same label is a stationary point, too.
TRAINED_ACCURACY = 0.5


@dataclass(frozen=True)
class Program:
    """What is compiled once, and run for each seed.

    Attributes:
        method: its name in ``METHODS``.
        gamma_x: stepsize of x; that of y is a tenth of it.
        graph: its name.
    """

    method: str
    gamma_x: float
    graph: str


@dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        program: method, stepsizes and graph.
        seed: of the division among the nodes, the first weights and the batches.
        mixed_share: share of the images that is dealt to the nodes at random.
    """

    program: Program
    seed: int
    mixed_share: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What a run came to, all at the mean of the nodes.

    Attributes:
        squared_gradients: f32[40], ``|grad_x f|^2`` over all training images, after every 40th
            part of the calls for gradients.
        train_accuracy: over the training images.
        test_accuracy: over the test images.
        attacked_accuracy: over the test images under PGD (``evaluation.attack``).
        zeta: inconsistency of the stepsizes of x at the end (``play.inconsistency``); None: the
            method's stepsizes are constant.
    """

    squared_gradients: np.ndarray
    train_accuracy: float
    test_accuracy: float
    attacked_accuracy: float
    zeta: float | None

    @property
    def squared_gradient(self) -> float:
        """``|grad_x f|^2`` at the end of the run: the mean over its last quarter."""
        return float(self.squared_gradients[-NUM_LAST:].mean())

    @property
    def is_trained(self) -> bool:
        """True if the network tells digits apart, so that a small gradient says something."""
        return self.train_accuracy >= TRAINED_ACCURACY


class Trainer:
    """Runs of equally many calls for gradients a node, as many at a time as there are cores."""

    def __init__(self, digits: Digits, graphs: Iterable[Graph], calls: int) -> None:
        self._digits = digits
        self._graphs = {graph.name: graph for graph in graphs}
        self._calls = calls
        self._runs: dict[Program, Run[Any, Any, Any, Any]] = {}

    def train(self, cells: Iterable[Cell]) -> dict[Cell, Outcome | None]:
        """Return the outcome of each run; None: a gradient was not finite.

        A step has too little work for two cores, so that two runs take the time of one.
        """
        by_program: dict[Program, list[Cell]] = {}
        for cell in dict.fromkeys(cells):
            by_program.setdefault(cell.program, []).append(cell)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            outcomes = list(pool.map(self._train_all, by_program.values()))
        return {cell: outcome for some in outcomes for cell, outcome in some.items()}

    def _train_all(self, cells: Sequence[Cell]) -> dict[Cell, Outcome | None]:
        """Return the outcomes of one program's runs, one after the other."""
        return {cell: self._train_one(cell) for cell in cells}

    def _train_one(self, cell: Cell) -> Outcome | None:
        """Return the outcome of a run."""
        graph = self._graphs[cell.program.graph]
        method = METHODS[cell.program.method]
        shards = divide(self._digits.train, graph.num_nodes, cell.seed, cell.mixed_share)
        start_key, batch_key = jax.random.split(jax.random.key(cell.seed))
        weights, perturbation = replicate(start(start_key), graph.num_nodes)
        keys = jax.random.split(batch_key, graph.num_nodes)
        try:
            final, points = self._run(cell.program)(shards, weights, perturbation, keys)
        except DivergenceError:
            return None
        weights, perturbation = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), points)
        images = Images(*(leaf.reshape(-1, *leaf.shape[2:]) for leaf in shards))
        last = jax.tree.map(lambda leaf: leaf[-1], weights)
        attacked = attack(last, self._digits.test)
        zeta = None
        if method.is_adaptive:
            accumulators = np.asarray(final.accum_x), np.asarray(final.accum_y)
            zeta = float(inconsistency(method.rule(*_gammas(cell.program)), *accumulators))
        return Outcome(
            squared_gradients=np.asarray(squared_gradients(weights, perturbation, images)),
            train_accuracy=float(accuracy(last, images)),
            test_accuracy=float(accuracy(last, self._digits.test)),
            attacked_accuracy=float(accuracy(last, attacked)),
            zeta=zeta,
        )

    def _run(self, program: Program) -> Run[Any, Any, Any, Any]:
        """Return the compiled run of a program."""
        if program not in self._runs:
            method = METHODS[program.method]
            # A method with two calls a step gets half the steps.
            steps = self._calls // method.calls_per_step
            self._runs[program] = over_axis(
                method.rule(*_gammas(program)),
                self._graphs[program.graph],
                method.adapt(gradients),
                steps=steps,
                every=steps // NUM_RECORDS,
                observe=method.point,
            )
        return self._runs[program]


def _gammas(program: Program) -> tuple[float, float]:
    """Return gamma_x and gamma_y."""
    return program.gamma_x, program.gamma_x / GAMMA_RATIO
