"""Earlier occurrences of the end of a sequence, and what followed them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MAX_MATCHES = 16  # occurrences that are compared; the newest
MIN_MATCH_LEN = 2  # a single token recurs too often to say what follows
LONG_MATCH_LEN = 4  # occurrences of this many tokens are looked for first


@dataclass(frozen=True, slots=True)
class Matches:
    """Occurrences of the end of a sequence, newest first.

    Attributes:
        lengths: tokens before the end that each occurrence shares, from ``MIN_MATCH_LEN`` up to
            the longest that was compared.
        continuations: what followed each, i32[num_matches, num_next]; -1 behind its end.
    """

    lengths: list[int]
    continuations: np.ndarray


NO_MATCHES = Matches([], np.empty((0, 0), np.int32))


def find_in_context(tokens: np.ndarray, max_len: int, num_next: int) -> Matches:
    """Return the occurrences of the end of ``tokens`` (i32[n]) before it.

    A linear scan: it reads four bytes a token where the attention of the step that it saves reads
    the token's K and V, and a context needs no index that would be built for every prompt.

    Args:
        max_len: tokens of the end that are compared at most.
        num_next: tokens of the continuations.
    """
    num = len(tokens)
    if num <= MIN_MATCH_LEN:
        return NO_MATCHES
    ends = np.flatnonzero(tokens[MIN_MATCH_LEN - 1 : -1] == tokens[-1]) + MIN_MATCH_LEN - 1
    for back in range(1, LONG_MATCH_LEN):
        if not len(ends):
            return NO_MATCHES
        fits = ends[ends >= back]
        fits = fits[tokens[fits - back] == tokens[-1 - back]] if back < num else fits[:0]
        if back >= MIN_MATCH_LEN and not len(fits):
            break
        ends = fits
    if not len(ends):
        return NO_MATCHES
    ends = ends[: -MAX_MATCHES - 1 : -1]
    suffix = tokens[: -max_len - 1 : -1]
    before = ends[:, None] - np.arange(len(suffix))
    lengths = common_lengths((tokens[before] == suffix) & (before >= 0))
    # Behind the end of the sequence an occurrence continues with its own continuation, as in LZ77.
    period = (num - 1 - ends)[:, None]
    return Matches(lengths.tolist(), tokens[ends[:, None] + 1 + np.arange(num_next) % period])


def common_lengths(is_equal: np.ndarray) -> np.ndarray:
    """Return how many leading entries of each row (bool[n, len]) are True, i64[n]."""
    lengths: np.ndarray = np.where(is_equal.all(1), is_equal.shape[1], is_equal.argmin(1))
    return lengths
