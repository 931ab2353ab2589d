from __future__ import annotations

from typing import Any

import pytest

from tests.agents.agent import AFTER, BEFORE, TASK, Agent
from tests.agents.play import Played
from tests.agents.problems import cached_shares, problems_of_engine, problems_of_script
from tests.agents.recorder import Exchange, threads_of

AGENT = Agent("one", "npm", "one", "1.0", "one", (), (), session_source="codex")


def turn(prompt: int = 100, cached: int = 0, status: int = 200, **answer: Any) -> Exchange:
    body = {"messages": [TASK], "tools": ["read"]}
    answer = {"text": "", "calls": [], "end": "stop", "prompt": prompt, "cached": cached, **answer}
    return Exchange("POST", "/v1/chat/completions", {}, body, status, answer)


def played(*exchanges: Exchange, note: str = AFTER) -> Played:
    return Played(note, [*exchanges], [0], "printed", {})


def test_a_script_must_be_played_to_its_end() -> None:
    assert problems_of_script(played(turn())) == []
    assert "forty-one" in problems_of_script(played(turn(), note=BEFORE))[0]
    problems = problems_of_script(played(turn(status=400)))
    assert "400" in problems[0]
    assert problems[-1] == "printed"


@pytest.mark.parametrize(
    ("second", "identified", "problem"),
    [
        (turn(120, 100), 2, None),
        (turn(60, 60), 2, None),  # a session that began anew
        (turn(120, 80), 2, "0.800 of a prompt"),
        (turn(120, 100, end=""), 2, "has no end"),
        (turn(120, 100, status=500), 2, "500"),
        (turn(120, 100), 1, "not codex"),
    ],
)
def test_an_engine_must_answer_and_find_what_it_computed(
    second: Exchange, identified: int, problem: str | None
) -> None:
    problems = problems_of_engine(AGENT, played(turn(), second, note=BEFORE), {"codex": identified})
    assert (problem or "") in "".join(problems)
    assert bool(problems) is (problem is not None)


def test_an_agent_must_end_by_itself() -> None:
    endless = played(turn(), turn(120, 100))
    endless.exit_codes = [0, -9]
    assert problems_of_engine(AGENT, endless, {"codex": 2})[0] == "it did not end by itself"


def test_shares_are_of_turns_of_one_thread() -> None:
    other = turn(1000)
    other.body = {**other.body, "tools": ["write"]}
    threads = threads_of([turn(), other, turn(150, 112)])
    assert cached_shares(threads) == [1.12]
