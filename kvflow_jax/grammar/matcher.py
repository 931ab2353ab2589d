"""The state of one output within its grammar: which tokens may come next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kvflow_jax.errors import GrammarError, StepFailedError

if TYPE_CHECKING:
    from llguidance import LLMatcher


_MISMATCH = "doesn't satisfy the grammar"  # llguidance's words


class Matcher:
    """Follows one output through its grammar. Not thread-safe.

    Args:
        state: llguidance's matcher, which has accepted the output so far.
        vocab_size: token ids of the model.

    Attributes:
        mask: i32[ceil(vocab_size / 32)], read-only; bit ``i % 32`` of word ``i // 32`` is set if
            token i may come next. End-of-text tokens may come where the output may end.

    Raises:
        GrammarError: no text follows, or the mask takes more work than llguidance's limits allow.
    """

    def __init__(self, state: LLMatcher, vocab_size: int) -> None:
        self._state, self._num_words = state, num_mask_words(vocab_size)
        self._original: Matcher | None = None  # None: it is no copy
        self.mask = self._compute_mask()

    def clone(self) -> Matcher:
        """Return an independent matcher in the same state."""
        clone = object.__new__(Matcher)
        clone._state, clone._num_words = self._state.deep_copy(), self._num_words
        # Copies share most of the original's memory, which is counted while the original lives.
        clone._original = self._original or self
        clone.mask = self.mask
        return clone

    def accept(self, token: int) -> bool:
        """Advance past a token; return True if the output is complete, and nothing may follow.

        Raises:
            StepFailedError: the grammar does not allow the token.
            GrammarError: as the class.
        """
        if not self._state.consume_token(token):
            reason = error_of(self._state)
            if _MISMATCH in reason:
                raise StepFailedError(f"token {token} does not match the grammar: {reason}")
            raise GrammarError(f"the grammar cannot be followed: {reason}")
        self.mask = self._compute_mask()
        return self._state.is_stopped()

    def masks_along(self, tokens: Sequence[int]) -> list[np.ndarray]:
        """Return the mask behind each of the next tokens, without advancing.

        It ends before the first token that the grammar does not allow, or behind which nothing
        follows.
        """
        ahead, masks = self.clone(), []
        for token in tokens:
            if not ahead.mask[token >> 5] >> (token & 31) & 1:
                break
            try:
                if ahead.accept(token):
                    break
            except (GrammarError, StepFailedError):
                break  # it comes again, and is reported, if the model samples the token
            masks.append(ahead.mask)
        return masks

    @property
    def is_complete(self) -> bool:
        """True if nothing may follow."""
        return self._state.is_stopped()

    def _compute_mask(self) -> np.ndarray:
        # Also at the end: only a mask finds out that nothing may follow.
        mask = np.frombuffer(self._state.compute_bitmask(), np.int32)[: self._num_words]
        if self._state.is_error():
            raise GrammarError(f"the grammar cannot be followed: {error_of(self._state)}")
        return mask


def error_of(state: LLMatcher) -> str:
    """Return why a matcher of llguidance has failed, without its notes on itself."""
    return state.get_error().removesuffix("<non-verbose/>").strip()


def pack_mask(token_ids: Sequence[int], vocab_size: int) -> np.ndarray:
    """Return the mask of a set of tokens; see ``Matcher.mask``."""
    bits = np.zeros(32 * num_mask_words(vocab_size), np.uint8)
    bits[np.asarray(token_ids)] = 1
    return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)


def num_mask_words(vocab_size: int) -> int:
    """Return the 32-bit words of a mask over ``vocab_size`` tokens."""
    return -(-vocab_size // 32)
