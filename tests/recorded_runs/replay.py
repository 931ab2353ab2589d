"""Replays calls of runs to what recognises runs, in the order of their times, and counts its hits.

recordings, made traffic ──▶ events ──▶ begin(prompt), end(answer) ──▶ precision, recall
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.recorded_runs.recording import Call, read_recording

VOCAB_SIZE = 50_000


class Recogniser(Protocol):
    """What is tested, as the engine uses it."""

    def begin(self, call: int, prompt_ids: Sequence[int]) -> tuple[Hashable, bool]:
        """Return the run of a call, and whether it was recognised: False if the run is new.

        Args:
            call: number of the call, for ``end``.
        """

    def end(self, call: int, answer_ids: Sequence[int]) -> None:
        """Take note of the answer to a call."""


@dataclass(frozen=True)
class Score:
    """How well runs were recognised.

    Attributes:
        num_later: prompts that were sent after an answer of their run.
        num_recognised: prompts that were given a run that had begun.
        num_right: those whose run it was.
    """

    num_later: int
    num_recognised: int
    num_right: int

    @property
    def precision(self) -> float:
        return self.num_right / self.num_recognised if self.num_recognised else 1.0

    @property
    def recall(self) -> float:
        return self.num_right / self.num_later


def interleaved(recordings: Iterable[Path]) -> list[Call]:
    """Return the calls of recordings as if all had begun at the same time."""
    calls = [call for path in recordings for call in _labelled(path)]
    return sorted(calls, key=lambda call: call.begin_s)


def replay(calls: Sequence[Call], recogniser: Recogniser) -> Score:
    """Give calls to a recogniser, each prompt and each answer at its time."""
    answered: set[str] = set()  # runs
    owner: dict[Hashable, str] = {}  # by what a recogniser calls a run: whose call began it
    num_later = num_recognised = num_right = 0
    for number, is_begin in _events(calls):
        call = calls[number]
        if not is_begin:
            recogniser.end(number, call.answer_ids)
            answered.add(call.run)
            continue
        num_later += call.run in answered
        found, is_recognised = recogniser.begin(number, call.prompt_ids)
        if is_recognised:
            num_recognised += 1
            num_right += owner.get(found) == call.run
        else:
            owner[found] = call.run
    return Score(num_later, num_recognised, num_right)


class Traffic:
    """Makes calls, one after the other, from tokens that no other text has.

    Args:
        seed: of its tokens.
    """

    def __init__(self, seed: int = 0) -> None:
        self.calls: list[Call] = []
        self._rng = random.Random(seed)

    def tokens(self, count: int) -> list[int]:
        """Return tokens drawn at random."""
        return [self._rng.randrange(VOCAB_SIZE) for _ in range(count)]

    def call(self, run: str, prompt_ids: list[int], answer_ids: list[int]) -> None:
        """Append a call that begins when the last one has ended."""
        time_s = float(len(self.calls))
        self.calls.append(
            Call(run, "agent", time_s, time_s + 0.5, [], [], "", prompt_ids, answer_ids)
        )


def _labelled(path: Path) -> Iterator[Call]:
    for call in read_recording(path):
        yield Call(**{**vars(call), "run": f"{path.stem}/{call.run}"})


def _events(calls: Sequence[Call]) -> Iterator[tuple[int, bool]]:
    """Yield the number of a call and whether it begins; ends come before what begins with them."""
    ends = [(call.end_s, False, number) for number, call in enumerate(calls)]
    begins = [(call.begin_s, True, number) for number, call in enumerate(calls)]
    for _, is_begin, number in sorted(ends + begins):
        yield number, is_begin
