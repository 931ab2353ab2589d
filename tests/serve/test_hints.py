"""``agent_hints`` over HTTP: what reaches the engine, and what comes back."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

from kvflow_jax.workflow.hints import Hints, HintStatus, Reuse
from tests.serve.serve_fakes import FakeEngine, LiveServer, live_server

TALK = [{"role": "system", "content": "You plan."}, {"role": "user", "content": "hi"}]
SYSTEM = "<system>You plan."
FIRST = {"workflow_id": "w", "agent_id": "planner"}
GRAPH = {"edges": [{"source": "planner", "target": "coder"}]}
NAMES = {"workflow_id": "run 7", "agent_id": "planner", "session_id": "s"}


def chat(http: httpx.Client, hints: Any, **fields: Any) -> dict[str, Any]:
    body = {"messages": TALK, "agent_hints": hints, **fields}
    answer = http.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    return answer.json()


def test_every_field_reaches_the_engine(http: httpx.Client, engine: FakeEngine) -> None:
    hints = {
        **NAMES,
        "session_final": True,
        "graph_id": "review",
        "step_graph": GRAPH,
        "steps_to_execution": {"coder": 1, "tester": 2},
        "next_agents": [{"agent_id": "coder", "probability": 0.5}, "tester"],
        "reuse_hint": "keep",
        "cache_ttl_ms": 1500,
        "fixed_prefix": {"unit": "token", "end": 4},
        "priority": 3,
        "unheard_of": [{}],
    }
    assert chat(http, hints)["kvflow"]["hint_status"] == "applied"
    seen = engine.last.hints
    assert seen.graph.names == ("planner", "coder")
    assert seen == Hints(
        **NAMES,
        session_final=True,
        graph_id="review",
        graph=seen.graph,
        steps_to_execution={"coder": 1.0, "tester": 2.0},
        next_agents={"coder": 0.5, "tester": 1.0},
        reuse=Reuse.KEEP,
        ttl_s=1.5,
        num_fixed=4,
        tenant="",
    )
    assert engine.last.priority == 3
    chat(http, hints, priority=-1)
    assert engine.last.priority == -1
    assert engine.last.hints.graph is seen.graph  # one object for all requests of a run


@pytest.mark.parametrize("absent", [{}, {"agent_hints": None}])
def test_a_plain_request_has_none(
    http: httpx.Client, live: LiveServer, absent: dict[str, Any]
) -> None:
    live.engine.num_cached, live.engine.num_cached_host = 8, 3
    before = live.tokenizer.num_rendered
    answer = http.post("/v1/chat/completions", json={"messages": TALK, **absent}).json()
    assert answer["kvflow"] == {
        "cached_tokens_details": {"device": 5, "host": 3},
        "hint_status": None,
    }
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 8}
    assert live.engine.last.hints is None
    assert live.tokenizer.num_rendered == before + 1


@pytest.mark.parametrize(
    ("silly", "status"),
    [
        ("planner", "ignored"),
        (7, "ignored"),
        ([FIRST], "ignored"),
        (False, "ignored"),
        ({}, "ignored"),
        ({"agent_id": ""}, "ignored"),
        ({"agent_id": "x" * 257}, "ignored"),
        ({"workflow_id": {"deep": [None]}}, "ignored"),
        ({**FIRST, "session_id": 5}, "clipped"),
        ({**FIRST, "session_final": "yes"}, "clipped"),
        ({**FIRST, "graph_id": ["g"]}, "clipped"),
        ({**FIRST, "step_graph": {"edges": [{"source": "a"}]}}, "clipped"),
        ({**FIRST, "step_graph": "a->b"}, "clipped"),
        ({**FIRST, "steps_to_execution": {"coder": "soon"}}, "clipped"),
        ({**FIRST, "steps_to_execution": [1]}, "clipped"),
        ({**FIRST, "steps_to_execution": 10**300}, "clipped"),
        ({**FIRST, "next_agents": [{"agent_id": "coder", "probability": 2}]}, "clipped"),
        ({**FIRST, "next_agents": {"coder": 1}}, "clipped"),
        ({**FIRST, "reuse_hint": "forever"}, "clipped"),
        ({**FIRST, "reuse_hint": 1}, "clipped"),
        ({**FIRST, "cache_ttl_ms": -1}, "clipped"),
        ({**FIRST, "cache_ttl_ms": 10**400}, "clipped"),
        ({**FIRST, "priority": "high"}, "clipped"),
        ({**FIRST, "priority": 10**10}, "clipped"),
        ({**FIRST, "fixed_prefix": 5}, "clipped"),
        ({**FIRST, "fixed_prefix": {"unit": "page", "end": 1}}, "clipped"),
        ({**FIRST, "fixed_prefix": {"unit": ["token"], "end": 1}}, "clipped"),
        ({**FIRST, "fixed_prefix": {"end": -1}}, "clipped"),
        ({**FIRST, "fixed_prefix": {"end": 10**400}}, "clipped"),
    ],
)
@pytest.mark.parametrize("route", ["chat/completions", "completions"])
def test_silly_hints_cost_nobody_an_answer(
    http: httpx.Client, engine: FakeEngine, route: str, silly: Any, status: str
) -> None:
    asked = {"messages": TALK} if route.startswith("chat") else {"prompt": "hi"}
    answer = http.post(f"/v1/{route}", json={**asked, "agent_hints": silly})
    assert answer.status_code == 200
    assert answer.json()["kvflow"]["hint_status"] == status


@pytest.mark.parametrize(
    ("given", "num_fixed"),
    [
        (None, len(SYSTEM)),
        ({"unit": "message", "end": 1}, len(SYSTEM)),
        ({"unit": "message", "end": 2}, len(SYSTEM + "<user>hi")),
        ({"unit": "message", "end": 99}, len(SYSTEM + "<user>hi")),
        ({"unit": "message", "end": 0}, 0),
        ({"unit": "token", "end": 5}, 5),
        ({"unit": None, "end": 5}, 5),
        ({"unit": "token", "end": 999}, len(SYSTEM + "<user>hi")),
    ],
)
def test_the_fixed_prefix(
    http: httpx.Client, engine: FakeEngine, given: Any, num_fixed: int
) -> None:
    hints = {**FIRST, "fixed_prefix": given}
    chat(http, hints)
    assert engine.last.hints.num_fixed == num_fixed


def test_what_has_no_system_message_or_cannot_be_written_alone_is_learned(
    http: httpx.Client, live: LiveServer
) -> None:
    chat(http, FIRST, messages=TALK[1:])
    assert live.engine.last.hints.num_fixed is None
    live.tokenizer.rejects_system_only = True
    try:
        assert chat(http, FIRST)["kvflow"]["hint_status"] == "applied"
    finally:
        live.tokenizer.rejects_system_only = False
    assert live.engine.last.hints.num_fixed is None
    before = live.tokenizer.num_rendered
    chat(http, {"workflow_id": "w"})  # whose prefix? nobody pays for it
    assert live.tokenizer.num_rendered == before + 1


def test_text_prompts(http: httpx.Client, engine: FakeEngine) -> None:
    def ask(prompt: Any, given: Any) -> list[Hints]:
        engine.requests.clear()
        body = {"prompt": prompt, "agent_hints": {**FIRST, "fixed_prefix": given}}
        http.post("/v1/completions", json=body).raise_for_status()
        return [request.hints for request in engine.requests.values()]

    assert [hints.num_fixed for hints in ask("hello", None)] == [None]
    short, long = ask([[1, 2], [1, 2, 3, 4]], {"end": 3})
    assert (short.num_fixed, short.is_clipped) == (2, True)
    assert (long.num_fixed, long.is_clipped) == (3, False)
    (one,) = ask("hello", {"unit": "message", "end": 1})
    assert (one.num_fixed, one.is_clipped) == (None, True)


def test_several_answers_share_their_hints(http: httpx.Client, engine: FakeEngine) -> None:
    engine.num_cached, engine.num_cached_host = 2, 1
    body = {"prompt": ["ab", "cd"], "n": 2, "agent_hints": FIRST}
    answer = http.post("/v1/completions", json=body).json()
    assert [request.hints.agent_id for request in engine.requests.values()] == ["planner"] * 4
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 4  # of two prompts
    assert answer["kvflow"] == {
        "cached_tokens_details": {"device": 2, "host": 2},
        "hint_status": "applied",
    }


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_says_it_once_at_the_end(
    client: openai.OpenAI, engine: FakeEngine, n: int, include_usage: bool
) -> None:
    engine.num_cached, engine.num_cached_host = 5, 5
    stream = client.chat.completions.create(
        model="tiny",
        messages=TALK,
        n=n,
        stream=True,
        stream_options={"include_usage": include_usage},
        extra_body={"agent_hints": FIRST},
    )
    chunks = list(stream)
    said = [chunk for chunk in chunks if hasattr(chunk, "kvflow")]
    assert said == chunks[-1:]
    assert said[0].kvflow == {
        "cached_tokens_details": {"device": 0, "host": 5},
        "hint_status": "applied",
    }
    assert bool(said[0].choices) is not include_usage
    assert all(choice.finish_reason for choice in said[0].choices)


def test_agents_belong_to_the_key_whatever_user_and_host() -> None:
    with live_server(api_keys=("one", "two")) as live:
        seen = {}
        for key in ("one", "two"):
            with httpx.Client(
                base_url=live.url, headers={"Authorization": f"Bearer {key}"}
            ) as http:
                for user in ("a", "b"):
                    chat(http, FIRST, user=user)
                    seen[key, user] = live.engine.last.hints.tenant
        assert seen["one", "a"] == seen["one", "b"] != ""
        assert seen["two", "a"] == seen["two", "b"] != seen["one", "a"]


def test_outcomes_are_counted(http: httpx.Client, engine: FakeEngine) -> None:
    def count(status: HintStatus) -> float:
        name = f'kvflow:hints_total{{engine="0",model_name="tiny",outcome="{status.value}"}}'
        (line,) = [one for one in http.get("/metrics").text.splitlines() if one.startswith(name)]
        return float(line.split()[-1])

    before = count(HintStatus.APPLIED)
    chat(http, FIRST)
    chat(http, None)
    assert count(HintStatus.APPLIED) == before + 1
