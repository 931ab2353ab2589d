from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.recorded_runs.recording import FOLDER
from tests.recorded_runs.replay import Score, Traffic, interleaved, replay


class ByFirstToken:
    """Takes calls whose prompts begin with the same token for one run."""

    def __init__(self) -> None:
        self.known: set[int] = set()
        self.log: list[str] = []

    def begin(self, call: int, prompt_ids: Sequence[int]) -> tuple[int, bool]:
        self.log.append(f"begin {call}")
        is_recognised = prompt_ids[0] in self.known
        self.known.add(prompt_ids[0])
        return prompt_ids[0], is_recognised

    def end(self, call: int, answer_ids: Sequence[int]) -> None:
        self.log.append(f"end {call}")


def test_precision_and_recall_are_counted_by_the_true_runs():
    traffic = Traffic()
    for run, first in (("a", 1), ("b", 2), ("a", 1), ("a", 2), ("b", 3), ("a", 3)):
        traffic.call(run, [first], [0])
    # Of four later prompts a run was given to three: to one the run that it was of.
    score = replay(traffic.calls, ByFirstToken())
    assert score == Score(num_later=4, num_recognised=3, num_right=1)
    assert score.precision == pytest.approx(1 / 3)
    assert score.recall == 1 / 4


def test_an_answer_is_known_before_the_prompt_that_is_sent_with_it_and_no_earlier():
    recogniser = ByFirstToken()
    calls = interleaved(sorted(FOLDER.glob("*.json")))
    replay(calls, recogniser)
    assert len(recogniser.log) == 2 * len(calls)
    for number, call in enumerate(calls):
        for other, earlier in enumerate(calls[:number]):
            is_known = earlier.end_s <= call.begin_s
            order = [recogniser.log.index(one) for one in (f"end {other}", f"begin {number}")]
            assert is_known == (order == sorted(order))


def test_runs_of_recordings_have_names_of_their_own():
    paths = sorted(FOLDER.glob("*.json"))
    assert len({call.run for call in interleaved(paths)}) == 4 + 4 + 8 + 8


def test_made_tokens_are_the_same_for_the_same_seed():
    assert Traffic(1).tokens(5) == Traffic(1).tokens(5) != Traffic(2).tokens(5)
