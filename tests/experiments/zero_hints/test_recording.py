from __future__ import annotations

from pathlib import Path

import pytest

from experiments.zero_hints.recording import FOLDER, Call, read_recording, write_recording

RECORDINGS = sorted(FOLDER.glob("*.json"))


def call(begin_s: float, prompt_ids: list[int], **others: object) -> Call:
    fields = {
        "run": "run-0",
        "agent": "planner",
        "begin_s": begin_s,
        "end_s": begin_s + 1,
        "messages": [{"role": "system", "content": "Plan."}],
        "tools": [],
        "answer": "Done.",
        "prompt_ids": prompt_ids,
        "answer_ids": [7, 8],
        **others,
    }
    return Call(**fields)


def test_calls_are_read_back_in_the_order_in_which_they_began(tmp_path):
    path = tmp_path / "one.json"
    tool = {"type": "function", "function": {"name": "look"}}
    first = call(2.0, [1, 2, 3])
    second = call(3.0, [1, 2, 4, 5], tools=[tool])
    third = call(4.0, [1, 2, 4], messages=[*first.messages, {"role": "user", "content": "ü"}])
    fourth = call(4.5, [9], agent="writer")
    write_recording(path, "any 1.0", [third, first, fourth, second])
    read = read_recording(path)
    assert [one.begin_s for one in read] == [0.0, 1.0, 2.0, 2.5]
    assert [one.prompt_ids for one in read] == [[1, 2, 3], [1, 2, 4, 5], [1, 2, 4], [9]]
    assert read[1].tools == [tool]
    assert read[2].messages == third.messages
    assert read[3].agent == "writer"


def test_a_text_that_occurs_again_is_written_once(tmp_path):
    path = tmp_path / "one.json"
    message = {"role": "user", "content": "said once"}
    calls = [call(float(n), [*range(50), n], messages=[message] * n) for n in range(1, 4)]
    write_recording(path, "any 1.0", calls)
    assert path.read_text().count("said once") == 1
    assert path.read_text().count("48,49") == 1


@pytest.fixture(scope="module", params=RECORDINGS, ids=lambda path: path.stem)
def recording(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_runs_are_interleaved(recording):
    calls = read_recording(recording)
    runs = {one.run for one in calls}
    assert len(runs) >= 4
    for run in runs:
        own = [one for one in calls if one.run == run]
        assert len(own) >= 4
        begin_s, end_s = own[0].begin_s, max(one.end_s for one in own)
        assert any(begin_s < one.begin_s < end_s for one in calls if one.run != run)


def test_a_run_begins_with_one_call(recording):
    """So that each other prompt of the run follows an answer of it."""
    calls = read_recording(recording)
    for run in {one.run for one in calls}:
        first, *later = [one for one in calls if one.run == run]
        assert all(one.begin_s > first.end_s for one in later)


def test_recordings_are_small():
    assert len(RECORDINGS) == 4
    assert sum(path.stat().st_size for path in RECORDINGS) < 200_000
