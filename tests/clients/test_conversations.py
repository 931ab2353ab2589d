"""Which agents continue their prompts, and in which session."""

from __future__ import annotations

import pytest

from kvflow_jax.clients import conversations
from kvflow_jax.clients.conversations import Conversations


def chat(*texts: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text} for text in texts]}


def test_an_agent_continues_once_a_call_has_shown_it() -> None:
    known = Conversations()
    assert known.session_of("run-1", "a", chat("x")) is None
    assert known.session_of("run-1", "a", chat("x", "y", "z")) == "run-1"
    assert known.session_of("run-2", "a", chat("q")) == "run-2"  # so does the next run
    assert known.session_of("run-1", "b", chat("x")) is None


def test_a_session_goes_on_under_other_names() -> None:
    """As a session of OpenAI's SDK, of which each turn is a run."""
    known = Conversations()
    known.session_of("run-1", "a", chat("x"))
    assert known.session_of("run-2", "a", chat("x", "y")) == "run-1"
    assert known.session_of("run-3", "a", chat("x", "y", "z")) == "run-1"
    assert known.session_of("run-3", "a", chat("x", "y", "z", "!")) == "run-1"
    assert known.session_of("run-4", "a", chat("y")) == "run-4"


@pytest.mark.parametrize("second", [chat("y"), chat("y", "x"), chat("x0", "y")])
def test_an_agent_with_new_prompts_does_not(second: dict[str, object]) -> None:
    known = Conversations()
    known.session_of("run-1", "a", chat("x"))
    assert known.session_of("run-1", "a", second) is None


def test_what_was_seen_last_decides() -> None:
    known = Conversations()
    for texts in (["x"], ["x", "y"]):
        known.session_of("r", "a", chat(*texts))
    assert known.session_of("r", "a", chat("new")) is None
    assert known.session_of("r", "a", chat("new", "y")) == "r"


def test_a_repeated_call_shows_nothing() -> None:
    known = Conversations()
    for texts in (["x"], ["x", "y"]):
        known.session_of("r", "a", chat(*texts))
    assert known.session_of("r", "a", chat("x", "y")) == "r"


def test_runs_side_by_side_that_begin_alike_are_apart() -> None:
    known = Conversations()
    for run in ("1", "2"):
        known.session_of(run, "a", chat("x"))
    sessions = [known.session_of(run, "a", chat("x", f"answer {run}")) for run in ("1", "2")]
    assert sessions == ["1", "2"]


def test_agents_with_the_same_messages_have_sessions_of_their_own() -> None:
    known = Conversations()
    known.session_of("a's", "a", chat("x"))
    known.session_of("a's", "a", chat("x", "y"))
    assert known.session_of("b's", "b", chat("x", "y", "z")) is None


def test_inputs_of_responses_count_and_other_bodies_do_not() -> None:
    known = Conversations()
    known.session_of("r", "a", {"input": ["x"]})
    assert known.session_of("r", "a", {"input": ["x", "y"]}) == "r"
    for body in ({}, {"input": "text"}, {"messages": None}, {"prompt": "x"}, chat()):
        assert known.session_of("r", "a", body) is None


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversations, "MAX_CALLS", 2)
    monkeypatch.setattr(conversations, "MAX_NAMES", 2)
    known = Conversations()
    for name in ("1", "2", "3"):
        known.session_of(name, f"agent-{name}", chat("x"))
        known.session_of(name, f"agent-{name}", chat("x", "y"))
    assert known.session_of("1", "agent-1", chat("x", "y", "z")) is None  # forgotten
    assert known.session_of("3", "agent-3", chat("x", "y", "z")) == "3"
    assert max(map(len, (known._sessions, known._last, known._continues))) == 2
