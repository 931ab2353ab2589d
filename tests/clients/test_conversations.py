"""Which agents continue their prompts."""

from __future__ import annotations

import pytest

from kvflow_jax.clients import conversations
from kvflow_jax.clients.conversations import Conversations


def chat(*texts: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text} for text in texts]}


def test_an_agent_continues_once_a_call_has_shown_it() -> None:
    known = Conversations()
    assert not known.continues("run-1|a", "a", chat("x"))
    assert known.continues("run-1|a", "a", chat("x", "y", "z"))
    assert known.continues("run-2|a", "a", chat("q"))  # so does the next run
    assert not known.continues("run-1|b", "b", chat("x"))


@pytest.mark.parametrize("second", [chat("y"), chat("y", "x"), chat("x0", "y"), chat()])
def test_an_agent_with_new_prompts_does_not(second: dict[str, object]) -> None:
    known = Conversations()
    known.continues("run-1|a", "a", chat("x"))
    assert not known.continues("run-1|a", "a", second)


def test_the_last_two_calls_decide() -> None:
    known = Conversations()
    for texts in (["x"], ["x", "y"]):
        known.continues("r", "a", chat(*texts))
    assert not known.continues("r", "a", chat("new"))
    assert known.continues("r", "a", chat("new", "y"))


def test_a_repeated_call_shows_nothing() -> None:
    known = Conversations()
    for texts in (["x"], ["x", "y"]):
        known.continues("r", "a", chat(*texts))
    assert known.continues("r", "a", chat("x", "y"))


def test_inputs_of_responses_count_and_other_bodies_do_not() -> None:
    known = Conversations()
    known.continues("r", "a", {"input": ["x"]})
    assert known.continues("r", "a", {"input": ["x", "y"]})
    for body in ({}, {"input": "text"}, {"messages": None}, {"prompt": "x"}):
        assert not known.continues("r", "a", body)


def test_the_number_of_conversations_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "MAX_CONVERSATIONS", 2)
    known = Conversations()
    for name in ("1", "2", "3"):
        known.continues(name, "a", chat("x"))
    assert not known.continues("1", "a", chat("x", "y"))  # forgotten
    assert known.continues("3", "a", chat("x", "y"))
