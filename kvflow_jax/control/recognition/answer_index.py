"""Provenance: which earlier answers a prompt holds, found by hashes of their tokens.

Agents pass on what others have answered: in a conversation's history, in a task, in notes. A prompt
that holds an answer belongs to the run of that answer. An answer is remembered by some of its
*windows*, runs of ``WINDOW`` tokens; a prompt is searched for all of them with one rolling hash.
Windows leave out the ends of an answer: there, tokens differ with the text around it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

WINDOW = 12  # tokens: of real agents' calls, 8 are too often what several runs write
MAX_WINDOWS = 16  # of an answer, spread over it
_MIN_LEAD = 2.0  # of the run of which a prompt holds most windows, over the next one
MAX_ANSWERS = 1024  # remembered; the oldest are forgotten first
ANSWER_BYTES = 150 + 160 * MAX_WINDOWS  # of one, estimated
_BASE = 0x9E3779B97F4A7C15  # of the rolling hash, odd
_POWERS = {length: np.uint64(pow(_BASE, 2 * length, 2**64)) for length in (1, 2, 4, 8)}
_MIN_FILTER_BITS = 10
_FILTER_LOAD = 8  # entries of the filter for each window


_SEVERAL = -1


class Held(NamedTuple):
    """An answer that a prompt holds: its call, and how many of its windows."""

    call: int
    num_windows: int


class AnswerIndex:
    """The answers of one tenant, by the number of the call that each belongs to.

    A window that two runs have generated tells nothing, and is ignored from then on.

    Args:
        run_of: the run of a call; None for one that is forgotten.
    """

    def __init__(self, run_of: Callable[[int], Hashable | None]) -> None:
        self._run_of = run_of
        # Window -> number of the last call whose answer has it, _SEVERAL: those of several runs.
        self._windows: dict[int, int] = {}
        self._answers: dict[int, list[int]] = {}  # windows by call, the oldest first
        self._filter = np.zeros(1 << _MIN_FILTER_BITS, bool)  # whether a window may have this key

    @property
    def num_bytes(self) -> int:
        """Estimate of its memory."""
        return ANSWER_BYTES * len(self._answers) + len(self._filter)

    def add(self, call: int, prompt: np.ndarray, answer: np.ndarray) -> None:
        """Remember an answer.

        Args:
            call: number of the call; later calls have larger numbers.
            prompt: u64[n], the ``window_hashes`` of its prompt: what was only repeated from it
                tells nothing.
            answer: i32[m], the tokens that were generated.
        """
        windows = window_hashes(answer[1:-1])
        if len(windows) > MAX_WINDOWS:
            windows = windows[np.linspace(0, len(windows) - 1, MAX_WINDOWS).astype(int)]
        repeated = _repeated(windows, prompt)
        keys = [key for key in dict.fromkeys(windows.tolist()) if key not in repeated]
        if not keys:
            return
        run = self._run_of(call)
        for key in keys:
            known = self._windows.get(key)
            is_new = known is None or (known != _SEVERAL and self._run_of(known) in (run, None))
            self._windows[key] = call if is_new else _SEVERAL
        self._answers[call] = keys
        if len(self._answers) > MAX_ANSWERS:
            self._forget_oldest()
        if _FILTER_LOAD * len(self._windows) > 2 * len(self._filter):
            self._rebuild_filter()
        else:
            _fill(self._filter, np.array(keys, np.uint64))

    def find(self, hashes: np.ndarray) -> list[Held]:
        """Return the answers that some tokens hold, those of the latest calls first.

        Args:
            hashes: u64[n], the ``window_hashes`` of the tokens.
        """
        hashes = _passing(self._filter, hashes)
        num_held = Counter(
            call for key in dict.fromkeys(hashes.tolist()) if (call := self._windows.get(key))
        )
        del num_held[_SEVERAL]
        return [Held(call, num_held[call]) for call in sorted(num_held, reverse=True)]

    def leading_run(self, held: Sequence[Held]) -> Hashable | None:
        """Return the run of which a prompt holds most; None if another one comes close.

        A prompt may quote what another run has answered.
        """
        num_windows = Counter[Hashable]()
        for call, num_held in held:
            run = self._run_of(call)
            if run is not None:
                num_windows[run] += num_held
        first, second = (*num_windows.most_common(2), (None, 0), (None, 0))[:2]
        return first[0] if first[1] >= _MIN_LEAD * second[1] else None

    def exclude(self, held: Sequence[Held], run: Hashable) -> None:
        """Ignore the answers of other runs from now on that a prompt of a run holds."""
        for call, _ in held:
            if self._run_of(call) != run:
                for key in self._answers.get(call, ()):
                    self._windows[key] = _SEVERAL

    def _forget_oldest(self) -> None:
        """Forget the oldest eighth of the answers."""
        for call in list(self._answers)[: MAX_ANSWERS // 8]:
            for key in self._answers.pop(call):
                if self._windows.get(key) in (call, _SEVERAL):
                    del self._windows[key]
        self._rebuild_filter()

    def _rebuild_filter(self) -> None:
        bits = max(_MIN_FILTER_BITS, (_FILTER_LOAD * len(self._windows)).bit_length())
        self._filter = np.zeros(1 << bits, bool)
        _fill(self._filter, np.fromiter(self._windows, np.uint64, len(self._windows)))


def _repeated(windows: np.ndarray, prompt: np.ndarray) -> set[int]:
    """Return those of some windows, u64[n], that a prompt, u64[m], may have."""
    may_be = np.zeros(1 << _MIN_FILTER_BITS, bool)
    _fill(may_be, windows)
    return set(_passing(may_be, prompt).tolist())


# A Bloom filter of two hash functions: the highest bits of a hash, and others below them.


def _fill(bloom: np.ndarray, hashes: np.ndarray) -> None:
    bloom[_high(bloom, hashes)] = True
    bloom[_low(bloom, hashes)] = True


def _passing(bloom: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Return the hashes, u64[n], that the filter may have."""
    hashes = hashes[bloom[_high(bloom, hashes)]]
    passing: np.ndarray = hashes[bloom[_low(bloom, hashes)]]
    return passing


def _high(bloom: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    return (hashes >> np.uint64(65 - len(bloom).bit_length())).view(np.int64)


def _low(bloom: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    return (hashes & np.uint64(len(bloom) - 1)).view(np.int64)


def window_hashes(tokens: np.ndarray) -> np.ndarray:
    """Return the hash of each window of some tokens, i32[n] -> u64[n - WINDOW + 1].

    A polynomial modulo 2**64, by doubling, multiplied once more so that its highest bits depend on
    all tokens.
    """
    if len(tokens) < WINDOW:
        return np.empty(0, np.uint64)
    one = tokens.astype(np.uint64)
    one += np.uint64(1)
    two = _joined(one, one, 1)
    four = _joined(two, two, 2)
    hashes = _joined(_joined(four, four, 4), four, 8)  # windows of 4 + 4 + 4 tokens
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(_BASE)
    return hashes


def _joined(first: np.ndarray, second: np.ndarray, length: int) -> np.ndarray:
    """Return the hashes of windows that consist of one of ``length`` tokens and one behind it."""
    joined = first[: len(second) - length] * _POWERS[length]
    joined += second[length:]
    return joined
