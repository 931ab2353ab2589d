"""How often something new follows a context, by how well the context is known; learned.

Secondary escape estimation, as in PPMII (Shkarin, 2002): contexts in the same situation share
one rate, so that in an application that always does the same even a context seen once is trusted.
"""

from __future__ import annotations

from bisect import bisect_left

VISIT_BOUNDS = (1, 2, 4, 8)  # visits up to each of them, and more
_NUM_VISITS = len(VISIT_BOUNDS) + 1
_MAX_AGENTS = 3  # that have followed; more count as so many
_NUM_RATES = _NUM_VISITS * _MAX_AGENTS
_PRIOR = 0.3  # of contexts visited once; then the rate after fewer visits is the prior of a rate
_DECAY = 1.0 - 1.0 / 64.0
_MATERIAL = 0.05  # change of a rate that makes forecasts new
MAX_RATE = 0.95  # what has followed before is never ruled out
MIN_RATE = 1e-3


class EscapeRates:
    """Part of the calls that an agent made which had not followed the context, by its situation.

    Attributes:
        version: rises when a rate has changed materially.
    """

    def __init__(self) -> None:
        self._new = [0.0] * _NUM_RATES
        self._seen = [0.0] * _NUM_RATES
        self._rates = [_PRIOR] * _NUM_RATES
        self._told = list(self._rates)  # when the version rose last
        self.version = 0

    def rate(self, visits: int, num_agents: int) -> float:
        """Return the chance that something new follows, above 0 and below 1.

        Args:
            visits: how often something has followed the context.
            num_agents: how many agents have.
        """
        return self._rates[_index(visits, num_agents)]

    def record(self, visits: int, num_agents: int, *, is_new: bool) -> None:
        """Record whether something new followed a context in this situation."""
        at = _index(visits, num_agents)
        self._new[at] = self._new[at] * _DECAY + is_new
        self._seen[at] = self._seen[at] * _DECAY + 1.0
        self._update(at)

    def to_list(self) -> list[list[float]]:
        """Return its state as JSON values."""
        return [list(row) for row in zip(self._new, self._seen, strict=True)]

    @classmethod
    def from_list(cls, state: object) -> EscapeRates:
        """Return rates of this state. Raises ValueError if it is not one."""
        if not isinstance(state, list) or len(state) != _NUM_RATES:
            raise ValueError(f"there are {_NUM_RATES} rates of escape")
        rates = cls()
        for at, row in enumerate(state):
            if not isinstance(row, list) or len(row) != 2:
                raise ValueError("a rate of escape has two numbers")
            rates._new[at], rates._seen[at] = map(float, row)
            if not 0 <= rates._new[at] <= rates._seen[at] < 1e9:
                raise ValueError("a rate of escape is a part of calls")
        for num_agents in range(1, _MAX_AGENTS + 1):
            rates._update(_index(1, num_agents))
        return rates

    def _update(self, at: int) -> None:
        """Compute a rate, and those after more visits, whose prior it is."""
        prior = self._rates[at - _MAX_AGENTS] if at >= _MAX_AGENTS else _PRIOR
        for index in range(at, _NUM_RATES, _MAX_AGENTS):
            prior = (self._new[index] + prior) / (self._seen[index] + 1.0)
            self._rates[index] = prior = min(max(prior, MIN_RATE), MAX_RATE)
            if abs(prior - self._told[index]) > _MATERIAL:
                self._told = list(self._rates)
                self.version += 1


def _index(visits: int, num_agents: int) -> int:
    return bisect_left(VISIT_BOUNDS, visits) * _MAX_AGENTS + min(num_agents, _MAX_AGENTS) - 1
