"""When each agent calls next, from the chances of single steps: first passage of a Markov chain."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Sequence
from itertools import count
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from kvflow_jax.reuse.predictor import HORIZON, MIN_CHANCE

State = TypeVar("State", bound=Hashable)
MAX_STATES, MAX_STEPS = 32, 160  # that are followed, for less than a millisecond
MIN_PATH_CHANCE = 0.02  # of the likeliest way to a state; a less likely one is simplified


class Step(NamedTuple):
    """A step from a state: the agent that calls, how likely, and the state after it."""

    agent: str
    chance: float
    state: Hashable


class FirstPassages(Generic[State]):
    """The number of calls until each agent's next one, as a distribution, from every state.

    Args:
        start: the state from which others are reached.
        steps_of: the steps from a state, each by another agent to another state; all steps to one
            state are by the same agent. Their chances sum to 1 at most, and what lacks is lost.
        simplify: from a state to one of fewer, after a call of the same agent. Unlikely states are
            replaced by it, so that there are few.
    """

    def __init__(
        self,
        start: State,
        steps_of: Callable[[State], Sequence[Step]],
        simplify: Callable[[State], State] = lambda state: state,
    ) -> None:
        self._index, steps = _expand(start, steps_of, simplify)
        self._agents: dict[str, int] = {}
        self._table = self._compute(steps)
        # Of states whose ways on were not all followed, too little is known.
        targets = {step.state for row in steps for step in row}
        self._num_known = len(self._index) if targets <= self._index.keys() else 1
        self._table = self._table[:, : self._num_known].copy()
        self._found: dict[Hashable, dict[str, tuple[float, ...]]] = {}

    def of(self, state: State) -> dict[str, tuple[float, ...]] | None:
        """Return the distributions from a state; None if it is not known here.

        Returns:
            agent -> probabilities of 1 to ``HORIZON`` calls, of agents with ``MIN_CHANCE`` in all.
        """
        index = self._index.get(state)
        if index is None or index >= self._num_known:
            return None
        found = self._found.get(state)
        if found is None:
            by_agent = self._table[:, index].T
            is_likely = by_agent.sum(axis=1) >= MIN_CHANCE
            rows = by_agent.tolist()
            found = self._found[state] = {
                agent: tuple(rows[column])
                for agent, column in self._agents.items()
                if is_likely[column]
            }
        return found

    def _compute(self, steps: list[Sequence[Step]]) -> np.ndarray:
        """Return the probabilities, f32[HORIZON, num_states, num_agents]."""
        sources: list[int] = []
        columns: list[int] = []
        chances: list[float] = []
        moves: list[tuple[int, int, float, int]] = []  # between states that are followed
        for source, row in enumerate(steps):
            for agent, chance, state in row:
                column = self._agents.setdefault(agent, len(self._agents))
                sources.append(source)
                columns.append(column)
                chances.append(chance)
                target = self._index.get(state)
                if target is not None:
                    moves.append((source, target, chance, column))
        shape = (len(self._index), len(self._agents))
        # passages[s, a]: probability that a's next call is the k-th from state s.
        passages = np.zeros(shape, np.float32)
        passages[sources, columns] = chances
        others = np.ones(shape, np.float32)  # 0 where a calls on the way to a state
        to_state = np.zeros((shape[0], shape[0]), np.float32)
        if moves:
            from_index, to_index, move_chances, callers = zip(*moves, strict=True)
            to_state[from_index, to_index] = move_chances
            others[to_index, callers] = 0.0
        table = np.empty((HORIZON, *shape), np.float32)
        table[0] = passages
        for k in range(1, HORIZON):
            np.matmul(to_state, table[k - 1] * others, out=table[k])
        return table


def _expand(
    start: State,
    steps_of: Callable[[State], Sequence[Step]],
    simplify: Callable[[State], State],
) -> tuple[dict[Hashable, int], list[Sequence[Step]]]:
    """Return the states that are followed, by index, and the steps from each: likeliest first."""
    index: dict[Hashable, int] = {}
    steps: list[Sequence[Step]] = []
    order = count()  # states need not be comparable
    heap: list[tuple[float, int, int, Hashable]] = [(-1.0, 0, next(order), start)]
    pushed: dict[Hashable, float] = {}
    num_steps = 0
    while heap and len(index) < MAX_STATES and num_steps < MAX_STEPS:
        minus_chance, depth, _, state = heapq.heappop(heap)
        if state in index:
            continue
        index[state] = len(index)
        row: list[Step] = []
        for step in steps_of(state):  # type: ignore[arg-type]
            target, chance = step.state, minus_chance * step.chance
            if chance > -MIN_PATH_CHANCE and target not in index:
                target = simplify(target)  # type: ignore[arg-type]
                step = Step(step.agent, step.chance, target)
            row.append(step)
            is_nearer = target not in index and chance < pushed.get(target, 0.0)
            if is_nearer and depth < HORIZON - 1:
                pushed[target] = chance
                heapq.heappush(heap, (chance, depth + 1, next(order), target))
        steps.append(row)
        num_steps += len(row)
    return index, steps
