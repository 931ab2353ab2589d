"""Which answers a prompt holds."""

import numpy as np
import pytest

from kvflow_jax.control.recognition.answer_index import (
    MAX_ANSWERS,
    MAX_WINDOWS,
    WINDOW,
    AnswerIndex,
    Held,
    window_hashes,
)

RNG = np.random.default_rng(0)
NO_PROMPT = np.empty(0, np.int32)


def tokens(count):
    return RNG.integers(0, 50_000, count).astype(np.int32)


@pytest.fixture
def runs():
    return {}


@pytest.fixture
def index(runs):
    return AnswerIndex(runs.get)


def find(index, tokens):
    return index.find(window_hashes(tokens))


def add(index, runs, call, answer, *, run=None, prompt=NO_PROMPT):
    runs[call] = f"run{call}" if run is None else run
    index.add(call, window_hashes(prompt), answer)


def test_equal_windows_have_equal_hashes_wherever_they_are():
    text = tokens(100)
    hashes = window_hashes(text)
    assert len(hashes) == 100 - WINDOW + 1
    assert len(set(hashes.tolist())) == len(hashes)
    np.testing.assert_array_equal(window_hashes(text[30:60]), hashes[30 : 60 - WINDOW + 1])
    assert len(window_hashes(text[: WINDOW - 1])) == 0


def test_a_prompt_holds_an_answer_between_other_tokens(index, runs):
    answer = tokens(40)
    add(index, runs, 1, answer)
    assert find(index, np.concatenate([tokens(50), answer, tokens(50)])) == [Held(1, MAX_WINDOWS)]
    # Texts around an answer change the tokens at its ends; a part of it does, too.
    held = find(index, np.concatenate([tokens(50), answer[1:-1], tokens(50)]))
    assert held == [Held(1, MAX_WINDOWS)]
    assert find(index, answer[20:])
    assert find(index, tokens(500)) == []


def test_short_answers_tell_nothing(index, runs):
    answer = tokens(WINDOW + 1)
    add(index, runs, 1, answer)
    assert find(index, answer) == []


def test_what_an_answer_repeats_from_its_prompt_tells_nothing(index, runs):
    prompt, own = tokens(200), tokens(30)
    add(index, runs, 1, np.concatenate([prompt[50:90], own]), prompt=prompt)
    assert find(index, prompt) == []
    assert find(index, own) != []


def test_what_two_runs_have_answered_tells_nothing(index, runs):
    common = tokens(40)
    add(index, runs, 1, common)
    add(index, runs, 2, common)
    assert find(index, common) == []


def test_what_a_run_answers_again_is_of_its_last_call(index, runs):
    answer = tokens(40)
    add(index, runs, 1, answer, run="a")
    add(index, runs, 2, answer, run="a")
    assert find(index, answer) == [Held(2, MAX_WINDOWS)]


def test_the_run_with_most_of_a_prompt_leads_if_no_other_comes_close(index, runs):
    answers = {call: tokens(60) for call in (1, 2, 3)}
    for call, answer in answers.items():
        add(index, runs, call, answer, run="b" if call == 3 else "a")
    held = find(index, np.concatenate([answers[1], answers[2], answers[3]]))
    assert [call for call, _ in held] == [3, 2, 1]
    assert index.leading_run(held) == "a"
    assert index.leading_run(find(index, np.concatenate([answers[1], answers[3]]))) is None
    assert index.leading_run([]) is None


def test_a_long_quotation_does_not_outweigh_an_own_answer(index, runs):
    own, quoted = tokens(60), tokens(600)
    add(index, runs, 1, own)
    add(index, runs, 2, quoted)
    assert index.leading_run(find(index, np.concatenate([own, quoted]))) is None


def test_answers_that_another_run_holds_are_excluded(index, runs):
    own, quoted = tokens(60), tokens(60)
    add(index, runs, 1, own)
    add(index, runs, 2, quoted)
    index.exclude(find(index, np.concatenate([own, quoted])), "run1")
    assert find(index, quoted) == []
    assert find(index, own) != []


def test_the_oldest_answers_are_forgotten(index, runs):
    answers = [tokens(20) for _ in range(MAX_ANSWERS + 1)]
    for call, answer in enumerate(answers, 1):
        add(index, runs, call, answer)
    assert find(index, answers[0]) == []
    assert all(find(index, answer) for answer in answers[-MAX_ANSWERS // 2 :])
    assert index.num_bytes < 4 << 20


def test_answers_of_forgotten_calls_have_no_run(index, runs):
    answer = tokens(40)
    add(index, runs, 1, answer)
    held = find(index, answer)
    runs.clear()
    assert index.leading_run(held) is None
