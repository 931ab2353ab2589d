"""A variable-order Markov model of the calls of runs: the longest context that pays decides.

A context is the last agent of a run, the last two in order, or the last three in any order, as
parallel branches call in varying order, and the set of them says what is left. A longer context is
learned only where the last agent alone leaves a choice.

The chance of what follows a context is blended with that of the shorter one, by the chance of
something new (escape), which is learned, too. Each context is scored on what follows before it
learns that, and decides only where it gives it no lower chance than the shorter one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from kvflow_jax.reuse.context import Context
from kvflow_jax.reuse.context_store import ContextStore, is_name, key_of
from kvflow_jax.reuse.delay import Delay
from kvflow_jax.reuse.escape import EscapeRates
from kvflow_jax.reuse.first_passage import FirstPassages, Step
from kvflow_jax.reuse.made_from import MadeFrom
from kvflow_jax.reuse.predictor import (
    MAX_HISTORY,
    MIN_CHANCE,
    Forecast,
    NextCall,
    Transition,
)

# Below this, something new is too rare to count against a forecast.
_NEGLIGIBLE_ESCAPE = 0.05
# Forecasts are withheld unless what followed was, in the mean of recent calls, so much likelier
# than by the mere frequencies of agents; nats.
_MIN_GAIN = 0.1
_GAIN_RATE = 1.0 / 32.0
# Nor from contexts that together have lost more than this against frequencies; nats, decaying.
_MAX_LOSS = 1.0
_MAX_PASSAGES, _MAX_STATES = 2, 128  # that are kept
# Forecasts outlive so many material changes, as a part of the contexts that they are made from.
_TOLERANCE = 0.25
_ALL = "all"  # the row of what all contexts share

# The last agent, the one before it, and the key of the last three if that context pays.
_State = tuple[str | None, str | None, tuple[str, ...] | None]


class ContextTree:
    """Predicts by the longest context that pays; see the module.

    Args:
        max_depth: agents of the longest context, 1 to ``MAX_HISTORY``.
    """

    def __init__(self, *, max_depth: int = MAX_HISTORY) -> None:
        self._max_depth = max_depth
        self._passages: list[tuple[FirstPassages[_State], MadeFrom]] = []  # the last one last
        self._steps: dict[_State, tuple[list[Step], MadeFrom]] = {}
        self._contexts = ContextStore(max_depth, self._forget_forecasts)
        self._escapes = EscapeRates()
        self._gain = 0.0  # over frequencies, nats a call, of recent calls

    @property
    def num_agents(self) -> int:
        return self._contexts.num_agents

    @property
    def num_bytes(self) -> int:
        return self._contexts.num_bytes

    @property
    def is_trusted(self) -> bool:
        """Whether it has predicted recent calls better than frequencies do."""
        return self._gain >= _MIN_GAIN

    def observe(self, history: Sequence[str], agent: str, delay_s: float) -> None:
        if not is_name(agent):
            return
        store, escapes = self._contexts, self._escapes
        is_known = store.knows(agent)  # else no forecast could have named it
        chance = frequency = store.frequency(agent)
        for depth, context in enumerate(store.to_learn(history[-MAX_HISTORY:]), 1):
            num_bytes = context.num_bytes
            if len(context):
                share = context.share(agent)
                escape = escapes.rate(context.visits, len(context))
                own = (1.0 - escape) * share + escape * chance
                if is_known:
                    version = escapes.version
                    escapes.record(context.visits, len(context), is_new=not share)
                    if escapes.version != version:
                        self._forget_forecasts()
                    context.score(own, chance)
                if depth == 1 or context.gain >= 0:
                    chance = own
            context.learn(agent, delay_s)
            store.num_bytes += context.num_bytes - num_bytes
        if is_known:
            self._gain += (math.log(chance / frequency) - self._gain) * _GAIN_RATE
        store.count(agent)

    def forecast(self, history: Sequence[str]) -> Mapping[str, Forecast]:
        if not self.is_trusted:
            return {}
        state = self._state(history[-MAX_HISTORY:])
        passages, delay_of = self._find_passages(state), self._delays_after(state)
        return {agent: Forecast(steps, delay_of(agent)) for agent, steps in passages.items()}

    def next_calls(self, history: Sequence[str]) -> Mapping[str, NextCall]:
        if not self.is_trusted:
            return {}
        state = self._state(history[-MAX_HISTORY:])
        delay_of = self._delays_after(state)
        return {
            step.agent: NextCall(step.chance, delay_of(step.agent))
            for step in self._steps_of(state)
        }

    def expects(self, history: Sequence[str]) -> str | None:
        if not self.is_trusted:
            return None
        steps = self._steps_of(self._state(history[-MAX_HISTORY:]))
        return max(steps, key=lambda step: step.chance).agent if steps else None

    def transitions(self, max_rows: int) -> list[Transition]:
        rows: list[Transition] = []
        for key, context in self._contexts.newest():
            if len(rows) >= max_rows:
                break
            if len(key) < 2 or context.gain > 0:
                rows += [
                    Transition(key, agent, share, context.num_seen(agent), context.delay(agent))
                    for agent, share in context.shares()
                ]
        rows.sort(key=lambda row: (-row.num_seen, row.context, row.agent))
        return rows[:max_rows]

    def forget(self, agent: str) -> None:
        self._contexts.forget(agent)
        self._forget_forecasts()

    def rows(self) -> Iterator[list[Any]]:
        yield [_ALL, self._gain, self._escapes.to_list()]
        yield from self._contexts.rows()

    @classmethod
    def from_rows(cls, rows: Iterable[Any]) -> ContextTree:
        tree = cls()
        for row in rows:
            try:
                kind, *values = row
                if kind == _ALL:
                    gain, escapes = values
                    tree._gain = float(gain)
                    tree._escapes = EscapeRates.from_list(escapes)
                else:
                    tree._contexts.load_row(kind, values)
            except (TypeError, OverflowError) as error:
                raise ValueError(f"a row that is not of a predictor: {error}") from error
        if not math.isfinite(tree._gain):
            raise ValueError("the gain must be a finite number")
        return tree

    def _delays_after(self, state: _State) -> Callable[[str], Delay | None]:
        """Return the times between a state's last call and the very next one, by its agent."""
        last = None if state[0] is None else self._contexts.find((state[0],))
        return _no_delay if last is None else last.delay

    def _forget_forecasts(self) -> None:
        self._passages.clear()
        self._steps.clear()

    def _state(self, history: Sequence[str]) -> _State:
        """Return all of a history that matters; many histories have the same state."""
        if not history:
            return (None, None, None)
        last = history[-1]
        if len(history) == 1 or self._max_depth == 1:
            return (last, None, None)
        triple = None
        if len(history) > 2 and self._max_depth > 2:
            key = key_of(history, 3)
            context = self._contexts.find(key)
            if context is not None and context.gain >= 0:
                shortest = self._contexts.find((last,))
                triple = key if shortest is not None and len(shortest) > 1 else None
        return (last, history[-2], triple)

    def _contexts_of(self, state: _State) -> list[Context]:
        """Return the contexts that may decide what follows a state, from the shortest."""
        last, before, triple = state
        find = self._contexts.find
        if last is None:
            return [context] if (context := find(())) is not None else []
        shortest = find((last,))
        if shortest is None or len(shortest) < 2:  # as when it learns
            return [] if shortest is None else [shortest]
        keys: list[tuple[str, ...]] = []
        if before is not None:
            keys.append((before, last))
        if triple is not None:
            keys.append(triple)
        return [shortest, *[context for key in keys if (context := find(key)) is not None]]

    def _steps_of(self, state: _State) -> list[Step]:
        """Return what may follow a state, with its chances; empty if that is not trusted."""
        return self._find_steps(state)[0]

    def _find_steps(self, state: _State) -> tuple[list[Step], MadeFrom]:
        entry = self._steps.get(state)
        if entry is None or not entry[1].holds:
            contexts = self._contexts_of(state)
            if len(self._steps) >= _MAX_STATES:
                self._steps.clear()
            entry = self._steps[state] = (self._blend(state, contexts), MadeFrom(contexts))
        return entry

    def _blend(self, state: _State, contexts: list[Context]) -> list[Step]:
        # The shortest may have lost against frequencies, for which longer ones make up.
        path = contexts[:1] + [context for context in contexts[1:] if context.gain >= 0]
        if sum([context.gain for context in path]) < -_MAX_LOSS:
            return []
        chances: dict[str, float] = {}
        escaped = 1.0
        for context in path:
            escape = self._escapes.rate(context.visits, len(context))
            chances = {agent: chance * escape for agent, chance in chances.items()}
            for agent, share in context.shares():
                chances[agent] = chances.get(agent, 0.0) + share * (1.0 - escape)
            escaped *= escape
        likely = [(agent, chance) for agent, chance in chances.items() if chance >= MIN_CHANCE]
        total = sum([chance for _, chance in likely])
        scale = 1.0 / total if likely and escaped <= _NEGLIGIBLE_ESCAPE else 1.0
        last, before, _ = state
        earlier = [agent for agent in (before, last) if agent is not None]
        return [Step(a, chance * scale, self._state([*earlier, a])) for a, chance in likely]

    def _find_passages(self, state: _State) -> dict[str, tuple[float, ...]]:
        """Return when each agent calls next from a state; computed once for all states near it."""
        for passages, made_from in reversed(self._passages):
            found = passages.of(state)
            if found is not None and made_from.holds:
                return found
        contexts: dict[int, Context] = {}

        def steps_of(one: _State) -> list[Step]:
            steps, made_from = self._find_steps(one)
            for context in made_from.contexts:
                contexts[id(context)] = context
            return steps

        passages = FirstPassages(state, steps_of, _simplify)
        kept = [entry for entry in self._passages if entry[1].holds and entry[0].of(state) is None]
        new = (passages, MadeFrom(contexts.values(), _TOLERANCE))
        self._passages = [*kept, new][-_MAX_PASSAGES:]
        found = passages.of(state)
        assert found is not None
        return found


def _no_delay(agent: str) -> Delay | None:
    return None


def _simplify(state: _State) -> _State:
    """Return the state of the last agent alone."""
    return (state[0], None, None)
