"""The draft of one sequence, followed as its tokens become known."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from kvflow_jax.speculation.acceptance import AcceptanceRates
from kvflow_jax.speculation.drafter import NO_DRAFT, Draft, Drafter

# Drafts in a row that fail at once, for which the next lookup waits for one token more.
_FAILURES_PER_WAIT = 4
_MAX_WAIT = 8  # tokens


class DraftTracker:
    """Keeps the draft of what follows a sequence, and records how far each draft held.

    A draft that holds is followed without another lookup until half of it is used up. The more
    drafts in a row fail at once, the longer the next lookup waits, so that a sequence that repeats
    nothing costs next to nothing.

    Args:
        owner: whose answers may be used; see ``suffix_index.owner_of``.
        rates: of the caller's agent.
        stop_ids: tokens that end the sequence.

    Attributes:
        draft: what may follow the tokens known so far.
    """

    def __init__(
        self,
        drafter: Drafter,
        owner: int,
        rates: AcceptanceRates,
        *,
        max_tokens: int,
        stop_ids: Collection[int] = (),
    ) -> None:
        self.owner = owner
        self.draft: Draft = NO_DRAFT
        self._drafter, self._rates, self._stop_ids = drafter, rates, stop_ids
        self._max_tokens = max_tokens
        self._num_known: int | None = None  # tokens that the draft follows
        self._num_failed = self._num_waited = 0

    def update(self, tokens: np.ndarray) -> None:
        """Take the tokens of the sequence so far, i32[n], of which the last ones are new."""
        new = [] if self._num_known is None else tokens[self._num_known :].tolist()
        self._num_known = len(tokens)
        drafted, kinds = self.draft.tokens, self.draft.kinds
        num_held = 0
        for token, guess, kind in zip(new, drafted, kinds, strict=False):
            self._rates.record(kind, is_hit=token == guess)
            if token != guess:
                break
            num_held += 1
        if drafted and new:
            self._num_failed = 0 if num_held else self._num_failed + 1
        if num_held == len(new) and 2 * (len(drafted) - num_held) > self._max_tokens:
            self.draft = self.draft.after(num_held)
            return
        self._num_waited += len(new)
        if new and self._num_waited <= min(self._num_failed // _FAILURES_PER_WAIT, _MAX_WAIT):
            self.draft = NO_DRAFT
            return
        self._num_waited = 0
        self.draft = self._drafter.draft(self.owner, self._rates, tokens, self._stop_ids)
