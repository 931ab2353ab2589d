"""Calls of agents as text."""

import json
import re

import numpy as np
import pytest

from experiments.workloads.readers import TraceError

ANSWER = "an answer that is long enough to be found again"


def call(given, answer="yes", *, session="s", timestamp=0):
    return {"timestamp": timestamp, "input": given, "output": answer, "session_id": session}


def test_a_session_is_a_run_in_the_order_of_its_timestamps(read):
    runs = read(
        call("b" * 40, timestamp=20), call("other", session="o"), call("a" * 80, timestamp=10)
    )
    assert {run.workflow_id: len(run.calls) for run in runs} == {"s": 2, "o": 1}
    first, second = runs[0].calls
    assert (len(first.parts[0]), len(second.parts[0])) == (20, 10)
    assert (first.after, second.after) == ((), (0,))
    assert (first.is_last, second.is_last) == (False, True)
    assert {one.agent for run in runs for one in run.calls} == {""}
    assert all(run.graph is None for run in runs)


def test_an_input_that_repeats_an_answer_has_its_tokens(read):
    (run,) = read(
        call("question", ANSWER),
        call(f"question{ANSWER}tool", "ok"),
        call(f"question{ANSWER}toolok and more {ANSWER}"),
    )
    first, second, third = run.calls
    assert second.parts[1] == third.parts[1] == 0
    for one in (second, third):
        assert np.array_equal(one.parts[0], first.parts[0])
    assert [part for part in third.parts if isinstance(part, int)] == [0]  # once, the first time
    assert first.num_output == -(-len(ANSWER) // 4)


def test_no_prompt_ends_with_an_answer(read):
    (run,) = read(call("question", ANSWER), call(ANSWER, ""), call("", "picture"))
    assert run.prompt_lens[2] == 1
    assert run.calls[1].parts[0] == 0
    assert len(run.calls[1].parts[1]) == 1
    assert run.calls[1].num_output == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**call("x"), "input": 7}, "line 2: input must be text"),
        (call("x", session=""), "line 2: session_id must be text"),
        ({**call("x"), "output": None}, "line 2: output must be text"),
        (call("x", session=3), "line 2: session_id must be text"),
        (call("x", timestamp="now"), "line 2: timestamp must be"),
        (call("x", timestamp=-1), "line 2: timestamp must be"),
        (json.dumps(call("x")).replace("0", "NaN"), "line 2: timestamp must be"),
    ],
)
def test_broken_lines_are_named(read, line, message):
    with pytest.raises(TraceError, match=re.escape(message)):
        read(call("x"), line)
