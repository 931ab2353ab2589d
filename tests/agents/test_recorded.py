"""What the coding agents sent gets the answers that they went on with.

``python -m tests.agents ENVIRONMENTS --record`` plays them and writes the recordings.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.agents.agents import AGENTS
from tests.agents.answers import read_answer
from tests.agents.recording import FOLDER, WORK, read_recording
from tests.support.scripted_runner import ScriptedServer, scripted_server

CONTEXT = 1 << 17
BY_NAME = {agent.name: agent for agent in AGENTS}
RECORDINGS = sorted(FOLDER.glob("*.json"))


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted_server(max_model_len=CONTEXT, num_pages=CONTEXT // 16) as server:
        yield server


@pytest.fixture(params=RECORDINGS, ids=lambda path: path.stem)
def recording(request: pytest.FixtureRequest) -> Path:
    return request.param


def replay(server: ScriptedServer, recording: Path) -> list[tuple[Any, Any, Any]]:
    """Return the body of each request, what was recorded and what the server answers now."""
    agent = BY_NAME[recording.stem]
    server.runner.answer = lambda prompt: agent.answer(prompt, WORK)
    answers = []
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for one in read_recording(recording):
            sent = {"json": one.body} if one.body is not None else {}
            answer = http.request(one.method, one.path, headers=one.headers, **sent)
            now = read_answer(answer.headers.get("content-type", ""), answer.content)
            answers.append((one.body, (one.status, one.answer), (answer.status_code, now)))
    return answers


def test_every_agent_has_a_recording_of_two_turns_and_more() -> None:
    assert {path.stem for path in RECORDINGS} == BY_NAME.keys()
    for path in RECORDINGS:
        turns = [one for one in read_recording(path) if one.body and one.body.get("tools")]
        assert len(turns) >= 3
        assert all(one.status == 200 for one in turns)


def test_agents_get_the_calls_texts_and_ends_that_they_got(
    server: ScriptedServer, recording: Path
) -> None:
    for _, before, now in replay(server, recording):
        assert _without_usage(now) == _without_usage(before)


def test_a_turn_finds_the_prompt_of_the_last_one_in_the_cache(
    server: ScriptedServer, recording: Path
) -> None:
    turns = [now for body, _, (_, now) in replay(server, recording) if body and body.get("tools")]
    for last, turn in pairwise(turns):
        assert turn["cached"] >= 0.95 * last["prompt"]


def _without_usage(answer: tuple[int, Any]) -> tuple[int, Any]:
    status, value = answer
    if isinstance(value, dict):
        value = {name: part for name, part in value.items() if name not in ("prompt", "cached")}
    return status, value
