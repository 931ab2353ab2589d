"""Run a method on a problem and record what the figures are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiments.minimax.rivals import METHODS, DAdaGrad, DNeAda, DTiAda
from experiments.minimax.side_by_side import SideBySide
from kvflow_jax.errors import DivergenceError
from kvflow_jax.minimax import DAdaST, Graph, over_axis
from kvflow_jax.minimax.nodes import Gradients
from kvflow_jax.minimax.rule import Rule

# A run is played in as many stretches: the records of one in which it diverges are lost.
NUM_STRETCHES = 100


@dataclass(frozen=True)
class Trace:
    """What a run recorded, at the start and after every ``every``-th step.

    Attributes:
        steps: i64[k], number of steps after which each record was taken, from 0.
        x: f64[n, k, ...], at all nodes.
        y: f64[n, k, ...], likewise.
        zeta: f64[k - 1, ...], the inconsistency of the stepsizes of x after each record but the
            first (see ``inconsistency``); None: the rule has no scalar accumulators.
        diverged_by: number of steps by which a gradient was no longer finite; None: all were.
            Records end before it.
    """

    steps: np.ndarray
    x: np.ndarray
    y: np.ndarray
    zeta: np.ndarray | None
    diverged_by: int | None


def play(
    name: str,
    rule: Rule[Any],
    graph: Graph,
    gradients: Gradients[Any, Any, Any],
    data: Any,
    x: np.ndarray,
    y: np.ndarray,
    *,
    steps: int,
    every: int,
    is_side_by_side: bool = False,
    seed: int = 0,
) -> Trace:
    """Run a rule at all nodes of a graph.

    Args:
        name: of the method in ``METHODS``, whose rule it is.
        rule: by which each node steps.
        graph: of the nodes.
        gradients: of one node's function, of all runs at once.
        data: pytree of [n, ...], or of [n, runs, ...].
        x: f64[n, ...], or f64[n, runs, ...], where each node begins.
        y: likewise.
        steps: number of steps, a multiple of ``NUM_STRETCHES * every``.
        every: number of steps between two records.
        is_side_by_side: whether x and y have an axis of independent runs behind the nodes.
        seed: of the noise.
    """
    method = METHODS[name]
    has_scalars = isinstance(rule, DAdaST | DTiAda | DAdaGrad | DNeAda)

    def observe(state: Any) -> tuple[Any, ...]:
        inner = state.states if is_side_by_side else state
        accumulators = (inner.accum_x, inner.accum_y) if has_scalars else ()
        return *method.point(inner), *accumulators

    stretch = steps // NUM_STRETCHES
    run = over_axis(
        SideBySide(rule) if is_side_by_side else rule,
        graph,
        method.adapt(gradients),
        steps=stretch,
        every=every,
        observe=observe,
    )
    keys = jax.random.split(jax.random.key(seed), graph.num_nodes)
    records: list[tuple[np.ndarray, ...]] = []
    state, diverged_by = None, None
    for index in range(NUM_STRETCHES):
        try:
            state, seen = run(data, x, y, keys) if state is None else run.resume(data, state, keys)
        except DivergenceError:
            diverged_by = (index + 1) * stretch
            break
        records.append(tuple(map(np.asarray, seen)))
    if not records:
        return Trace(np.zeros(1, int), x[:, None], y[:, None], None, diverged_by)
    xs, ys, *accumulators = (np.concatenate(parts, axis=1) for parts in zip(*records, strict=True))
    return Trace(
        steps=np.arange(xs.shape[1] + 1) * every,
        x=np.concatenate([x[:, None], xs], axis=1),
        y=np.concatenate([y[:, None], ys], axis=1),
        zeta=inconsistency(rule, *accumulators) if has_scalars else None,
        diverged_by=diverged_by,
    )


def inconsistency(rule: Rule[Any], accum_x: np.ndarray, accum_y: np.ndarray) -> np.ndarray:
    """Return zeta_v^2: how far the nodes' stepsizes of x are from that of the mean accumulator.

    ``max_i ((v_i^-alpha - v^-alpha) / v^-alpha)^2``, where v_i is what node i's stepsize in x is a
    power of and v its mean over the nodes. The paper's figure 1 draws it over the steps.

    Args:
        rule: ``DAdaST``, or a rival with one accumulator for each player.
        accum_x: f64[n, ...], m^x of all nodes.
        accum_y: f64[n, ...], m^y.

    Returns:
        f64[...].
    """
    if isinstance(rule, DAdaST | DTiAda):
        scale, exponent = np.maximum(accum_x, accum_y), rule.alpha
    else:
        scale, exponent = accum_x, 0.5
    mean = scale.mean(0)
    # Where no node has an accumulator yet, none has a stepsize that could differ.
    relative = np.divide(scale, mean, out=np.ones_like(scale), where=mean > 0)
    largest: np.ndarray = np.max((relative**-exponent - 1) ** 2, axis=0)
    return largest
