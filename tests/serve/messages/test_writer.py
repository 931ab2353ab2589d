from __future__ import annotations

import json

import anthropic
import httpx
import pytest

from kvflow_jax.errors import IntegrityError
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.serve import stream as stream_module
from tests.serve.serve_fakes import FakeEngine, LiveServer
from tests.serve.serve_requests import HELLO, PLANNER

BODY = {"messages": HELLO, "max_tokens": 8, "stream": True}


def test_pings_keep_a_stream_alive_until_the_first_token(
    http: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "KEEP_ALIVE_S", 0.001)
    engine.reply = None
    with http.stream("POST", "/v1/messages", json=BODY) as answer:
        lines = (line[7:] for line in answer.iter_lines() if line.startswith("event: "))
        assert [next(lines) for _ in range(3)] == ["message_start", "ping", "ping"]
        engine.emit(engine.last, "hi")
        engine.finish(engine.last)
        names = [name for name in lines if name != "ping"]
    assert names[:2] == ["content_block_start", "content_block_delta"]
    assert names[-1] == "message_stop"


def test_an_error_in_mid_stream_is_an_event(live: LiveServer, engine: FakeEngine) -> None:
    engine.reply, engine.first_texts = None, ["a"]
    with anthropic.Anthropic(base_url=live.url, api_key="any", max_retries=0) as client:
        stream = client.messages.create(model="tiny", **BODY)
        (request,) = engine.wait_for_requests(1)
        assert next(stream).type == "message_start"
        engine.finish(request, FinishReason.ERROR, error=IntegrityError("block 7 is lost"))
        with pytest.raises(anthropic.APIStatusError, match="block 7 is lost"):
            list(stream)


def test_an_error_before_the_first_token_keeps_its_status(
    http: httpx.Client, engine: FakeEngine
) -> None:
    engine.reply = lambda request: (
        engine.finish(request, FinishReason.ERROR, error=IntegrityError("block 7 is lost")) or ()
    )
    answer = http.post("/v1/messages", json=BODY)
    assert answer.status_code == 500
    assert answer.json()["error"] == {"type": "api_error", "message": "block 7 is lost"}


@pytest.mark.parametrize("stream", [False, True])
def test_hints_apply_and_are_reported(http: httpx.Client, engine: FakeEngine, stream: bool) -> None:
    fields = {"agent_hints": PLANNER, "priority": 3, "cache_salt": "s", "user": "u"}
    answer = http.post("/v1/messages", json={**BODY, **fields, "stream": stream})
    if stream:
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if "data: " in line]
        (kvflow,) = [event["kvflow"] for event in events if "kvflow" in event]
    else:
        kvflow = answer.json()["kvflow"]
    assert kvflow["hint_status"] == "applied"
    spec = engine.last.spec
    assert spec.hints.agent_id == "planner"
    assert (spec.priority, spec.salt) == (3, "s")
    assert spec.user == "u"
