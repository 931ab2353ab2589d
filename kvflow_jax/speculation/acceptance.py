"""How often drafts of each kind hold, learned while serving."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict

_LENGTH_BOUNDS = (2, 3, 5, 8, 13, 21)  # tokens of the match: up to each of them, and more
_PRIOR_WEIGHT = 8.0  # outcomes that the prior counts as
_MAX_WEIGHT = 64.0  # at which old outcomes count half
_MAX_AGENTS = 4096
# Of a draft whose matches all continue in the same way, by length of the match; roughly those of
# the recorded calls that ``experiments.speculation`` replays. An agent's own rates replace them.
_PRIOR = (0.45, 0.6, 0.73, 0.8, 0.87, 0.92, 0.97)
_PRIOR_OF_AGREEMENT = (0.35, 0.65, 1.0)  # of it: no majority, a majority, all matches
NUM_KINDS = 2 * 3 * len(_PRIOR)


def kind_of(match_len: int, share: float, *, is_own: bool) -> int:
    """Return the kind of a drafted token.

    Args:
        match_len: tokens before it that its source shares with the sequence.
        share: part of the matches that continue with it.
        is_own: its source is the sequence itself, not an earlier answer.
    """
    length = bisect_left(_LENGTH_BOUNDS, match_len)
    agreement = 2 if share == 1 else 1 if share > 0.5 else 0
    return (length * 3 + agreement) * 2 + is_own


class AcceptanceRates:
    """Part of the drafted tokens of each kind that were what the model sampled, of one agent.

    A token counts if all before it in its draft held. It need not have been verified as a draft: a
    token that was decoded normally tells as much about the draft that was made for it.
    """

    def __init__(self) -> None:
        self._weights = [_PRIOR_WEIGHT] * NUM_KINDS
        self._hits = [
            _PRIOR_WEIGHT * prior * _PRIOR_OF_AGREEMENT[agreement]
            for prior in _PRIOR
            for agreement in range(3)
            for _ in range(2)
        ]

    def rate(self, kind: int) -> float:
        """Return the expected part of tokens of this kind that hold, above 0 and below 1."""
        return self._hits[kind] / self._weights[kind]

    def record(self, kind: int, *, is_hit: bool) -> None:
        """Record whether a drafted token of this kind held."""
        if self._weights[kind] >= _MAX_WEIGHT:
            self._weights[kind] /= 2
            self._hits[kind] /= 2
        self._weights[kind] += 1
        self._hits[kind] += is_hit


class AgentRates:
    """The rates of each agent; those used least recently are forgotten."""

    def __init__(self) -> None:
        self._rates: OrderedDict[int, AcceptanceRates] = OrderedDict()

    def of(self, agent: int) -> AcceptanceRates:
        """Return the rates of an agent, ``owner_of`` its names."""
        rates = self._rates.setdefault(agent, AcceptanceRates())
        self._rates.move_to_end(agent)
        if len(self._rates) > _MAX_AGENTS:
            self._rates.popitem(last=False)
        return rates
