"""What the coding agents sent gets the answers that they went on with.

``python -m tests.agents ENVIRONMENTS --record`` plays them and writes the recordings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from experiments.bench.metrics_page import samples
from kvflow_jax.serve.client_identity import read_identity
from kvflow_jax.workflow.hints import Hints
from tests.agents.agent import Agent
from tests.agents.agents import AGENTS, WITH_COMPACTION, WITH_SUBAGENTS
from tests.agents.answers import read_answer
from tests.agents.recorder import Exchange, threads_of
from tests.agents.recording import FOLDER, WORK, read_recording
from tests.support.scripted_runner import ScriptedServer, scripted_server

CONTEXT = 1 << 17
BY_NAME = {agent.name: agent for agent in (*AGENTS, *WITH_SUBAGENTS, *WITH_COMPACTION)}
RECORDINGS = sorted(FOLDER.glob("*.json"))


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with new_server() as server:
        yield server


def new_server() -> AbstractContextManager[ScriptedServer]:
    return scripted_server(max_model_len=CONTEXT, num_pages=CONTEXT // 16)


@pytest.fixture(params=RECORDINGS, ids=lambda path: path.stem)
def recording(request: pytest.FixtureRequest) -> Path:
    return request.param


def replay(server: ScriptedServer, recording: Path) -> list[Exchange]:
    """Return the recorded requests with what the server answers now."""
    agent = BY_NAME[recording.stem]
    server.runner.answer = lambda prompt: agent.answer(prompt, WORK)
    exchanges = read_recording(recording)
    with httpx.Client(base_url=server.url, timeout=60) as http:
        for one in exchanges:
            sent = {"json": one.body} if one.body is not None else {}
            answer = http.request(one.method, one.path, headers=one.headers, **sent)
            one.status = answer.status_code
            one.answer = read_answer(answer.headers.get("content-type", ""), answer.content)
    return exchanges


def test_every_agent_has_a_recording_of_two_turns_and_more() -> None:
    assert {path.stem for path in RECORDINGS} == BY_NAME.keys()
    for path in RECORDINGS:
        turns = [one for one in read_recording(path) if one.has_tools]
        assert len(turns) >= 3
        assert all(one.status == 200 for one in turns)


def test_agents_get_the_calls_texts_and_ends_that_they_got(
    server: ScriptedServer, recording: Path
) -> None:
    for before, now in zip(read_recording(recording), replay(server, recording), strict=True):
        assert without_usage(now) == without_usage(before)


def test_a_turn_finds_the_prompt_of_the_last_one_in_the_cache(
    server: ScriptedServer, recording: Path
) -> None:
    agent = BY_NAME[recording.stem]
    threads = threads_of(replay(server, recording))
    assert len(threads) == 1 + bool(agent.subagent_calls) + bool(agent.compaction)
    for thread in threads:
        for last, turn in pairwise(thread):
            assert turn.answer["cached"] >= 0.95 * last.answer["prompt"]


@pytest.mark.parametrize("agent", WITH_SUBAGENTS, ids=lambda agent: agent.name)
def test_a_subagent_has_a_session_of_its_own_and_its_agent_s_as_parent(agent: Agent) -> None:
    main, subagent = threads_of(read_recording(FOLDER / f"{agent.name}.json"))
    of_main, of_subagent = identity_of(main[0]), identity_of(subagent[0])
    assert all(identity_of(one) == of_main for one in main)
    assert all(identity_of(one) == of_subagent for one in subagent)
    assert of_main.session_id != of_subagent.session_id
    assert (of_main.parent_session_id, of_subagent.parent_session_id) == (None, of_main.session_id)
    assert of_main.workflow_id == of_subagent.workflow_id


@pytest.mark.parametrize("agent", WITH_COMPACTION, ids=lambda agent: agent.name)
def test_a_session_goes_on_from_its_summary(agent: Agent) -> None:
    with new_server() as server:
        *_, before, after = threads_of(replay(server, FOLDER / f"{agent.name}.json"))
        num_ended = num_compacted(server)
    assert identity_of(before[0]).session_id == identity_of(after[0]).session_id
    # System text and tools are found again.
    assert after[0].answer["cached"] > 1000
    generations = [identity_of(one).session_generation for one in (*before, *after)]
    if agent.session_source == "codex":
        assert (generations, num_ended) == ([0] * len(before) + [1] * len(after), 1)
    else:  # its client does not tell
        assert ({*generations}, num_ended) == ({None}, 0)


def num_compacted(server: ScriptedServer) -> float:
    """Return how many histories were released since their generation had ended."""
    page = httpx.get(f"{server.url}/metrics").text
    counts = {labels["reason"]: n for labels, n in samples(page, "kvflow:ended_histories_total")}
    return counts["compaction"]


def identity_of(exchange: Exchange) -> Hints:
    user = {"role": "user", "content": "The same in every turn."}
    found = read_identity(exchange.headers, exchange.body, [user], ["bash"])
    assert found is not None
    assert found.identity is not None
    return found.identity


def without_usage(exchange: Exchange) -> tuple[int, object]:
    answer = exchange.answer
    if isinstance(answer, dict):
        answer = {name: part for name, part in answer.items() if name not in ("prompt", "cached")}
    return exchange.status, answer
