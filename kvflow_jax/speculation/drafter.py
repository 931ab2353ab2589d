"""Drafts of the tokens that may come next, from finished answers and the sequence itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import accumulate
from operator import mul

import numpy as np

from kvflow_jax.speculation.acceptance import AcceptanceRates, kind_of
from kvflow_jax.speculation.matches import Matches, find_in_context
from kvflow_jax.speculation.suffix_index import SuffixIndex

_MIN_RATE = 0.02  # a token that is expected to be reached less often is not drafted


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that may come next.

    Attributes:
        tokens: in order.
        kinds: the kind of each, see ``acceptance.kind_of``.
        rates: how likely each holds if those before it do.
    """

    tokens: tuple[int, ...] = ()
    kinds: tuple[int, ...] = ()
    rates: tuple[float, ...] = ()

    def reached(self) -> list[float]:
        """Return how likely each token and all before it hold."""
        return list(accumulate(self.rates, mul))

    def after(self, num_tokens: int) -> Draft:
        """Return the draft behind its first tokens."""
        return Draft(self.tokens[num_tokens:], self.kinds[num_tokens:], self.rates[num_tokens:])


NO_DRAFT = Draft()


class Drafter:
    """Makes drafts.

    Args:
        index: the finished answers; None: drafts come from the sequence itself only.
        max_tokens: tokens of a draft at most.
        max_match_len: tokens before a draft that are compared at most.
    """

    def __init__(self, index: SuffixIndex | None, max_tokens: int, max_match_len: int) -> None:
        self._index = index
        self._max_tokens = max_tokens
        self._max_match_len = max_match_len

    def draft(
        self,
        owner: int,
        rates: AcceptanceRates,
        tokens: np.ndarray,
        stop_ids: Collection[int] = (),
    ) -> Draft:
        """Return a draft of what follows a sequence.

        The longest match wins, wherever it is. Between matches of one length the majority of their
        continuations decides, and the newest of them where no majority is.

        Args:
            owner: whose answers may be used; see ``suffix_index.owner_of``.
            rates: how often drafts of the caller's agent hold.
            tokens: the sequence, i32[n].
            stop_ids: tokens that end it, with which a draft ends.
        """
        own = find_in_context(tokens, self._max_match_len, self._max_tokens)
        is_own, matches = True, own
        if self._index is not None:
            found = self._index.find(owner, tokens, self._max_match_len, self._max_tokens)
            if max(found.lengths, default=0) > max(own.lengths, default=0):
                is_own, matches = False, found
        if not matches.lengths:
            return NO_DRAFT
        return _vote(matches, rates, stop_ids, is_own=is_own)

    def insert(self, owner: int, tokens: np.ndarray, num_prompt: int) -> None:
        """Add the answer of a finished sequence (i32[n]), with the last tokens of its prompt.

        These make the beginning of an answer a continuation, too.
        """
        if self._index is not None:
            self._index.insert(owner, tokens[max(0, num_prompt - self._max_match_len) :])


def _vote(
    matches: Matches, rates: AcceptanceRates, stop_ids: Collection[int], *, is_own: bool
) -> Draft:
    """Return the continuation of the longest matches, token by token that of most of them."""
    longest = max(matches.lengths)
    alive = matches.continuations[np.array(matches.lengths) == longest]
    tokens: list[int] = []
    kinds: list[int] = []
    expected: list[float] = []
    reached = 1.0
    for token, share in _majority(alive):
        kind = kind_of(longest + len(tokens), share, is_own=is_own)
        rate = rates.rate(kind)
        reached *= rate
        if token < 0 or reached < _MIN_RATE:
            break
        tokens.append(token)
        kinds.append(kind)
        expected.append(rate)
        if token in stop_ids:
            break
    return Draft(tuple(tokens), tuple(kinds), tuple(expected))


def _majority(rows: np.ndarray) -> Iterator[tuple[int, float]]:
    """Yield the token that most rows (i32[n, len]) continue with, and their part of the rows.

    Rows that continue otherwise have no say in what follows. Of equal counts, that of the first row
    wins.
    """
    num = rows.shape[1]
    start = 0
    while start < num:
        differs = (rows[:, start:] != rows[0, start:]).any(0) if len(rows) > 1 else ()
        end = start + int(np.argmax(differs)) if np.any(differs) else num
        for token in rows[0, start:end].tolist():
            yield token, 1.0
        if end < num:
            token, count = Counter(rows[:, end].tolist()).most_common(1)[0]
            yield token, count / len(rows)
            rows = rows[rows[:, end] == token]
        start = end + 1
