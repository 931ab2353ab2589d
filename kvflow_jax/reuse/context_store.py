"""The contexts of one tenant within bounds, and how often each agent calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from kvflow_jax.reuse.context import Context
from kvflow_jax.reuse.predictor import MAX_HISTORY
from kvflow_jax.reuse.recent_map import RecentMap

MAX_AGENTS = 8192  # that are kept for certain; twice as many at most
# Contexts of several agents that are kept for certain: so many, or one for every fourth agent.
# In random order there would be as many as calls.
NUM_LONG_CONTEXTS = 256
MAX_NAME_LEN = 256  # of an agent; a longer name is not learned
_GROWTH = 1.0 / (1.0 - 1.0 / 256.0)  # frequencies decay over so many calls
_MAX_UNIT = 1e12
_BASE_BYTES = 20_000  # of an empty store, with the forecasts that are kept
_AGENT_BYTES, _LONG_BYTES = 180, 150  # of an agent beside its context; of a longer context
_AGENT, _CONTEXT = "agent", "context"  # kinds of rows


class _Agent:
    """How often an agent calls, and what follows its calls."""

    __slots__ = ("context", "weight")

    def __init__(self) -> None:
        self.weight = 0.0
        self.context: Context | None = None  # None: nothing has followed it yet


class ContextStore:
    """Contexts by the agents of the last calls; those used least recently are dropped.

    Args:
        max_depth: agents of the longest context.
        on_added: called when something has followed an agent for the first time.
    """

    def __init__(self, max_depth: int, on_added: Callable[[], object]) -> None:
        self._max_depth = max_depth
        self._on_added = on_added
        self._agents: RecentMap[str, _Agent] = RecentMap(MAX_AGENTS, self._on_agent_dropped)
        self._long: RecentMap[tuple[str, ...], Context] = RecentMap(
            NUM_LONG_CONTEXTS, self._on_long_dropped
        )
        self._begin = Context(has_delays=False)  # what follows the beginning of a run
        self._unit, self._total = 1.0, 0.0  # weights of the next call, and of all, by agent
        self.num_bytes = _BASE_BYTES

    @property
    def num_agents(self) -> int:
        return len(self._agents)

    @property
    def num_long(self) -> int:
        """Contexts of more than one agent."""
        return len(self._long)

    def find(self, agents: tuple[str, ...]) -> Context | None:
        """Return the context of this key, see ``key_of``; None if nothing is known to follow it."""
        if len(agents) == 1:
            record = self._agents.get(agents[0])
            context = record.context if record is not None else None
        else:
            context = self._long.get(agents) if agents else self._begin
        return context if context is not None and len(context) else None

    def to_learn(self, history: Sequence[str]) -> Iterator[Context]:
        """Yield the contexts of a history, from the shortest; add those that are to be learned.

        Each must have learned before the next is asked for.
        """
        if not history:
            yield self._begin
            return
        shortest = self._context_of(history[-1])
        if shortest is None:
            return
        yield shortest
        # Longer contexts have nothing to say where the last agent alone decides. A set of three may
        # be known from another order, in which its last agent left a choice.
        if len(shortest) < 2:
            return
        for depth in range(2, min(self._max_depth, len(history)) + 1):
            if not is_name(history[-depth]):
                return
            key = key_of(history, depth)
            context = self._long.use(key)
            if context is None:
                context = Context(has_delays=False)
                self._put_long(key, context)
                shortest.version += 1  # for forecasts that were made without the new context
            yield context

    def knows(self, agent: str) -> bool:
        """Return whether an agent has called."""
        record = self._agents.get(agent)
        return record is not None and record.weight > 0

    def frequency(self, agent: str) -> float:
        """Return the part of calls, decayed, that an agent makes; new ones together have a part."""
        new = self._unit / (self._total + self._unit)
        record = self._agents.get(agent)
        if record is None or not record.weight:
            return new
        return (1.0 - new) * record.weight / self._total

    def count(self, agent: str) -> None:
        """Record a call of an agent."""
        record = self._agents.use(agent) or self._add_agent(agent)
        record.weight += self._unit
        self._total += self._unit
        self._unit *= _GROWTH
        if self._unit > _MAX_UNIT:
            for _, one in self._agents.items():
                one.weight /= self._unit
            self._total /= self._unit
            self._unit = 1.0

    def forget(self, agent: str) -> None:
        """Forget an agent, and all contexts that it is part of."""
        record = self._agents.pop(agent)
        if record is not None:
            self._on_agent_dropped(agent, record)
        for key in [key for key, _ in self._long.items() if agent in key]:
            context = self._long.pop(key)
            assert context is not None
            self._on_long_dropped(key, context)
        for _, context in self.items():
            num_bytes = context.num_bytes
            context.forget(agent)
            self.num_bytes += context.num_bytes - num_bytes

    def items(self) -> Iterator[tuple[tuple[str, ...], Context]]:
        """Return all contexts that something has followed, by key."""
        yield from self._of_agents(self._agents.items())
        yield from ((key, context) for key, context in self._long.items() if len(context))
        if len(self._begin):
            yield (), self._begin

    def newest(self) -> Iterator[tuple[tuple[str, ...], Context]]:
        """Return the same: the beginning, then agents, the newest first, then longer contexts."""
        if len(self._begin):
            yield (), self._begin
        yield from self._of_agents(self._agents.newest())
        yield from ((key, context) for key, context in self._long.newest() if len(context))

    def rows(self) -> Iterator[list[Any]]:
        """Return its state as JSON values; it may change between two rows."""
        agents, longer = list(self._agents.items()), list(self._long.items())
        if len(self._begin):
            yield [_CONTEXT, [], self._begin.to_list()]
        for name, agent in agents:
            yield [_AGENT, name, agent.weight / self._unit]
        for key, context in chain(self._of_agents(agents), longer):
            if len(context):
                yield [_CONTEXT, list(key), context.to_list()]

    def load_row(self, kind: object, values: list[Any]) -> None:
        """Add what a row says. Raises ValueError or TypeError if it is not one."""
        if kind == _AGENT:
            name, weight = values
            if not is_name(name) or not 0 <= weight < 1e9:
                raise ValueError("an agent has a name and a weight")
            record = self._agents.use(name) or self._add_agent(name)
            self._total += weight - record.weight
            record.weight = float(weight)
        elif kind == _CONTEXT:
            key, state = values
            if not isinstance(key, list) or len(key) > MAX_HISTORY or not all(map(is_name, key)):
                raise ValueError(f"a context is of at most {MAX_HISTORY} agents")
            self._load_context(tuple(key), Context.from_list(state, has_delays=len(key) == 1))
        else:
            raise ValueError("a row is of an agent or a context")

    def _load_context(self, key: tuple[str, ...], context: Context) -> None:
        if not key:
            self._begin = context
        elif len(key) == 1:
            record = self._agents.use(key[0]) or self._add_agent(key[0])
            if record.context is None:
                record.context = context
                self.num_bytes += context.num_bytes
        elif len(key) <= self._max_depth and key not in self._long:
            self._put_long(key, context)

    @staticmethod
    def _of_agents(
        agents: Iterable[tuple[str, _Agent]],
    ) -> Iterator[tuple[tuple[str, ...], Context]]:
        for name, agent in agents:
            if agent.context is not None and len(agent.context):
                yield (name,), agent.context

    def _context_of(self, agent: str) -> Context | None:
        """Return what follows an agent's calls; None if its name is not learned."""
        record = self._agents.use(agent)
        if record is None:
            if not is_name(agent):
                return None
            record = self._add_agent(agent)
        if record.context is None:
            record.context = Context(has_delays=True)
            self.num_bytes += record.context.num_bytes
            self._on_added()
        return record.context

    def _add_agent(self, name: str) -> _Agent:
        record = _Agent()
        self.num_bytes += _AGENT_BYTES + len(name)
        self._agents.put(name, record)
        self._long.capacity = max(NUM_LONG_CONTEXTS, len(self._agents) // 4)
        return record

    def _put_long(self, key: tuple[str, ...], context: Context) -> None:
        self.num_bytes += _LONG_BYTES + context.num_bytes
        self._long.put(key, context)

    def _on_agent_dropped(self, name: str, record: _Agent) -> None:
        self._total = max(0.0, self._total - record.weight)
        self.num_bytes -= _AGENT_BYTES + len(name)
        if record.context is not None:
            self.num_bytes -= record.context.num_bytes
            record.context.version += 1  # for forecasts that were made with it

    def _on_long_dropped(self, key: tuple[str, ...], context: Context) -> None:
        self.num_bytes -= _LONG_BYTES + context.num_bytes
        context.version += 1


def key_of(history: Sequence[str], depth: int) -> tuple[str, ...]:
    """Return the key of the context of the last ``depth`` agents of a history.

    Two are in their order, three in any: parallel branches call in varying order.
    """
    last = tuple(history[-depth:])
    return last if depth < 3 else tuple(sorted(last))


def is_name(agent: object) -> bool:
    """Return whether an agent of this name is learned."""
    return isinstance(agent, str) and 0 < len(agent) <= MAX_NAME_LEN
