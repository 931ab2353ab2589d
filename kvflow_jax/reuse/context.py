"""What has followed one context, the last calls of a run: counts that decay, and how well they do.

A tenant may have as many contexts as agents, so a context holds an array, not objects.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable

from kvflow_jax.reuse.delay import Delay
from kvflow_jax.reuse.escape import VISIT_BOUNDS

WINDOW = 64.0  # visits after which an old one counts little
MAX_SUCCESSORS = 64
MAX_VISITS = 200  # that are told apart: small integers take no memory
_GROWTH = 1.0 / (1.0 - 1.0 / WINDOW)
_MAX_UNIT = 1e6
_FADED = 0.02  # a successor of less weight is dropped when a new one comes
_GAIN_DECAY = 1.0 - 1.0 / 32.0
_LOSS_RATE = 1.0 / 8.0
# A CUSUM test for a graph that was rewired: the loss beyond the usual one, less a slack a visit,
# summed up. Two calls that were all but ruled out raise the alarm; chance does so about never.
_ALARM, _SLACK = 7.0, 0.1
_AFTER_ALARM = 0.5  # weight that earlier observations keep at most, in visits
_MATERIAL = 0.05  # change of chances that counts as one of the version
OTHER_KIND = 8  # what a change of another kind counts as
_TRUST_RISES_AT = tuple(bound + 1 for bound in VISIT_BOUNDS)
# Measured on CPython 3.11: the object with its numbers, tuple and array; an agent and its facts.
_BYTES, _AGENT_BYTES, _FACT_BYTES = 260, 8, 6


class Context:
    """Which agents followed a context, by counts that decay with its visits.

    Attributes:
        visits: how often something followed it, at most ``MAX_VISITS``.
        gain: sum of ln(own chance / chance of the shorter context) of what followed, decaying; the
            context pays if it is not negative.
        version: rises when what follows has changed so much that forecasts are to be made anew.
    """

    __slots__ = (
        "_agents",
        "_cusum",
        "_drift",
        "_facts",
        "_loss",
        "_stride",
        "_unit",
        "gain",
        "version",
        "visits",
    )

    def __init__(self, *, has_delays: bool) -> None:
        self._agents: tuple[str, ...] = ()
        self._stride = 4 if has_delays else 1
        self._facts = array("f")  # of each agent, its weight, and the numbers of its delay
        self._unit = 1.0  # weight of the next observation: it grows, instead of all others decaying
        self._loss = 1.0  # usual -ln chance of what followed, decaying
        self._cusum = self._drift = 0.0
        self.gain = 0.0
        self.visits = self.version = 0

    def __len__(self) -> int:
        return len(self._agents)

    @property
    def num_bytes(self) -> int:
        """Estimate of its memory in bytes, without names."""
        return _BYTES + (_AGENT_BYTES + _FACT_BYTES * self._stride) * len(self._agents)

    def share(self, agent: str) -> float:
        """Return the part of the visits, decayed, that an agent followed."""
        index = self._find(agent)
        return self._facts[index * self._stride] / self._total if index is not None else 0.0

    def shares(self) -> list[tuple[str, float]]:
        """Return the part of the visits that each agent followed; they sum to 1."""
        total = self._total
        weights = self._facts[:: self._stride]
        return [(a, weight / total) for a, weight in zip(self._agents, weights, strict=True)]

    def num_seen(self, agent: str) -> float:
        """Return how often an agent followed, decayed, in visits."""
        index = self._find(agent)
        return self._facts[index * self._stride] / self._unit if index is not None else 0.0

    def delay(self, agent: str) -> Delay | None:
        """Return the time before an agent's call; None if it is not known here."""
        index = self._find(agent)
        if index is None or self._stride == 1:
            return None
        at = index * self._stride
        delay = Delay(*self._facts[at + 1 : at + self._stride])
        return delay if delay.num_seen else None

    def score(self, chance: float, shorter: float) -> None:
        """Record the chance that was given to what followed, here and by the shorter context."""
        loss = -math.log(chance)
        paid = self.gain >= 0
        self.gain = self.gain * _GAIN_DECAY + math.log(chance / shorter)
        if paid != (self.gain >= 0):
            self.version += 1
        self._cusum = max(0.0, self._cusum + loss - self._loss - _SLACK)
        self._loss += (loss - self._loss) * _LOSS_RATE
        if self._cusum > _ALARM:
            self._start_over()

    def learn(self, agent: str, delay_s: float) -> None:
        """Record that an agent followed. Call ``score`` first, unless this is the first visit."""
        index = self._find(agent)
        if index is None:
            index = self._add(agent)
        facts, at, stride = self._facts, index * self._stride, self._stride
        facts[at] += self._unit
        total = self._total
        self._drift += (1.0 - facts[at] / total) * self._unit / total
        self._unit *= _GROWTH
        if self._unit > _MAX_UNIT:
            self._scale(lambda weight: weight / self._unit)
            self._unit = 1.0
        if stride > 1:
            old = Delay(*facts[at + 1 : at + stride])
            facts[at + 1 : at + stride] = array("f", old.observe(delay_s))
        self.visits = min(self.visits + 1, MAX_VISITS)
        if self._drift > _MATERIAL or self.visits in _TRUST_RISES_AT:
            self._drift = 0.0
            self.version += 1

    def forget(self, agent: str) -> None:
        """Forget an agent that followed; does nothing for an unknown one."""
        index = self._find(agent)
        if index is not None:
            self._remove(index)
            self.version += 1

    def to_list(self) -> list[object]:
        """Return its state as JSON values, with weights in visits."""
        facts = self._facts[:]
        for at in range(0, len(facts), self._stride):
            facts[at] /= self._unit
        scores = [round(self.gain, 4), round(self._loss, 4)]
        return [self.visits, *scores, list(self._agents), [round(value, 4) for value in facts]]

    @classmethod
    def from_list(cls, state: object, *, has_delays: bool) -> Context:
        """Return a context of this state. Raises ValueError if it is not one."""
        if not isinstance(state, list) or len(state) != 5:
            raise ValueError("a context has five entries")
        visits, gain, loss, agents, facts = state
        context = cls(has_delays=has_delays)
        stride = context._stride
        count = len(_checked(agents, str))
        if not 1 <= count <= MAX_SUCCESSORS or len(set(agents)) != count:
            raise ValueError("a context has agents that follow it, each once")
        if len(_checked(facts, float)) != count * stride:
            raise ValueError("a context has a weight and a delay for each agent")
        spreads = [*facts[1::stride], *facts[3::stride]] if has_delays else []
        if min(facts[::stride]) <= 0 or min(spreads, default=0) < 0:
            raise ValueError("weights and spreads are positive")
        if isinstance(visits, bool) or not isinstance(visits, int) or not 1 <= visits <= MAX_VISITS:
            raise ValueError(f"a context has 1 to {MAX_VISITS} visits")
        context.visits = visits
        context.gain, context._loss = map(float, _checked([gain, loss], float))
        context._agents, context._facts = tuple(agents), array("f", facts)
        return context

    @property
    def _total(self) -> float:
        return sum(self._facts if self._stride == 1 else self._facts[:: self._stride])

    def _scale(self, change: Callable[[float], float]) -> None:
        """Change the weights of all agents."""
        for at in range(0, len(self._facts), self._stride):
            self._facts[at] = change(self._facts[at])

    def _find(self, agent: str) -> int | None:
        try:
            return self._agents.index(agent)
        except ValueError:
            return None

    def _add(self, agent: str) -> int:
        """Add a successor of no weight; drop faded ones, and the lightest if there are too many."""
        for index in reversed(range(len(self._agents))):
            if self._facts[index * self._stride] < _FADED * self._unit:
                self._remove(index)
        if len(self._agents) >= MAX_SUCCESSORS:
            weights = self._facts[:: self._stride]
            self._remove(weights.index(min(weights)))
        self._agents = (*self._agents, agent)
        self._facts.extend([0.0] * self._stride)
        self.version += OTHER_KIND
        return len(self._agents) - 1

    def _remove(self, index: int) -> None:
        self._agents = self._agents[:index] + self._agents[index + 1 :]
        del self._facts[index * self._stride : (index + 1) * self._stride]

    def _start_over(self) -> None:
        """Let what comes now outweigh all that was observed before."""
        most = _AFTER_ALARM * self._unit
        self._scale(lambda weight: min(weight, most))
        self._cusum, self.visits = 0.0, 1
        self.version += OTHER_KIND


def _checked(values: object, kind: type) -> list[float]:
    """Return a list whose entries are strings, or finite numbers. Raises ValueError otherwise."""
    if not isinstance(values, list):
        raise ValueError("expected a list")
    for value in values:
        if kind is str and not isinstance(value, str):
            raise ValueError("expected names")
        if kind is float and (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not abs(value) < 1e9  # and no NaN
        ):
            raise ValueError("expected finite numbers")
    return values
