from __future__ import annotations

import json

import httpx
import openai
import pytest

from kvflow_jax.errors import IntegrityError
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.serve import stream as stream_module
from tests.serve.serve_fakes import FakeEngine
from tests.serve.serve_requests import PLANNER


def test_comments_keep_a_stream_alive_until_the_first_token(
    http: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "KEEP_ALIVE_S", 0.001)
    engine.reply = None
    with http.stream("POST", "/v1/responses", json={"input": "hi", "stream": True}) as answer:
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(4)] == [": keep-alive", ""] * 2
        engine.emit(engine.last, "hi")
        engine.finish(engine.last)
        names = [line[7:] for line in lines if line.startswith("event: ")]
    assert names[:2] == ["response.created", "response.in_progress"]
    assert names[-1] == "response.completed"


def test_an_error_in_mid_stream_ends_the_response_as_failed(
    client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.reply, engine.first_texts = None, ["a"]
    with client.responses.create(model="tiny", input="hi", stream=True) as stream:
        (request,) = engine.wait_for_requests(1)
        assert next(stream).type == "response.created"
        engine.finish(request, FinishReason.ERROR, error=IntegrityError("block 7 is lost"))
        last = list(stream)[-1]
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error.message == "block 7 is lost"


def test_an_error_after_a_keep_alive_ends_the_response_as_failed(
    client: openai.OpenAI, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "KEEP_ALIVE_S", 0.001)
    engine.reply = None
    with client.responses.create(model="tiny", input="hi", stream=True) as stream:
        (request,) = engine.wait_for_requests(1)
        engine.finish(request, FinishReason.ERROR, error=IntegrityError("block 7 is lost"))
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds == ["response.created", "response.in_progress", "response.failed"]


@pytest.mark.parametrize("stream", [False, True])
def test_hints_apply_and_are_reported(http: httpx.Client, engine: FakeEngine, stream: bool) -> None:
    fields = {"agent_hints": PLANNER, "priority": 3, "cache_salt": "s", "user": "u"}
    answer = http.post("/v1/responses", json={"input": "hi", **fields, "stream": stream})
    if stream:
        data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
        response = json.loads(data[-1])["response"]
    else:
        response = answer.json()
    assert response["kvflow"]["hint_status"] == "applied"
    assert response["user"] == "u"
    spec = engine.last.spec
    assert spec.hints.agent_id == "planner"
    assert (spec.priority, spec.salt) == (3, "s")
    assert spec.user == "u"


def test_a_client_that_disconnects_aborts_its_response(
    http: httpx.Client, engine: FakeEngine
) -> None:
    engine.reply, engine.first_texts = None, ["a"]
    with http.stream("POST", "/v1/responses", json={"input": "hi", "stream": True}) as answer:
        next(answer.iter_lines())
    engine.wait_for(lambda: engine.aborted == [engine.last.request_id])
