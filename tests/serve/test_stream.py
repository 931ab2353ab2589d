from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from kvflow_jax.errors import IntegrityError
from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.serve import stream
from tests.serve.serve_fakes import FakeEngine
from tests.serve.serve_requests import HELLO, PLANNER, SYSTEM_AND_USER


def test_cached_tokens_are_zero_rather_than_null(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json={"messages": HELLO}).json()
    assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_usage_is_the_last_chunk_if_requested(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *chunks, last = list(stream)
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage.completion_tokens == 2
    assert last.usage.prompt_tokens_details.cached_tokens == 0


def test_events_end_with_done_and_escape_unusual_line_separators(
    http: httpx.Client, engine: FakeEngine
) -> None:
    engine.reply = ["a\u2028b\x85c\n", "é"]
    answer = http.post("/v1/chat/completions", json={"messages": HELLO, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert '"usage"' not in answer.text


def test_an_error_before_the_first_token_keeps_its_status(
    client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.reply = None
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(
            client.chat.completions.create, model="tiny", messages=HELLO, stream=True
        )
        (request,) = engine.wait_for_requests(1)
        engine.finish(request, FinishReason.ERROR, error=IntegrityError("block 7 is lost"))
        with pytest.raises(openai.InternalServerError, match="block 7 is lost"):
            answer.result()


def test_an_error_in_mid_stream_is_an_event(client: openai.OpenAI, engine: FakeEngine) -> None:
    engine.reply, engine.first_texts = None, ["a"]
    with client.chat.completions.create(model="tiny", messages=HELLO, stream=True) as stream:
        (request,) = engine.wait_for_requests(1)
        assert next(stream).choices[0].delta.role == "assistant"
        engine.finish(request, FinishReason.ERROR, error=IntegrityError("block 7 is lost"))
        with pytest.raises(openai.APIError, match="block 7 is lost"):
            list(stream)


def test_an_engine_error_without_streaming_is_a_500(
    client: openai.OpenAI, engine: FakeEngine
) -> None:
    engine.reply = None
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.chat.completions.create, model="tiny", messages=HELLO)
        (request,) = engine.wait_for_requests(1)
        engine.finish(request, FinishReason.ERROR, error=IntegrityError("block 7 is lost"))
        with pytest.raises(openai.InternalServerError, match="block 7 is lost"):
            answer.result()


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_reports_cache_and_hints_once_in_its_last_chunk(
    client: openai.OpenAI, engine: FakeEngine, n: int, include_usage: bool
) -> None:
    engine.num_cached, engine.num_cached_host = 5, 5
    stream = client.chat.completions.create(
        model="tiny",
        messages=SYSTEM_AND_USER,
        n=n,
        stream=True,
        stream_options={"include_usage": include_usage},
        extra_body={"agent_hints": PLANNER},
    )
    chunks = list(stream)
    (last,) = [chunk for chunk in chunks if hasattr(chunk, "kvflow")]
    assert last is chunks[-1]
    assert last.kvflow == {
        "cached_tokens_details": {"device": 0, "host": 5},
        "hint_status": "applied",
    }
    assert bool(last.choices) is not include_usage
    assert all(choice.finish_reason for choice in last.choices)


def test_a_stream_is_kept_alive_until_the_first_token(
    http: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "KEEP_ALIVE_S", 0.001)
    engine.reply = None
    body = {"messages": HELLO, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(4)] == [": keep-alive", ""] * 2
        engine.emit(engine.last, "hi")
        engine.finish(engine.last)
        data = [line for line in lines if line.startswith("data: ")]
    assert '"hi"' in "".join(data)
    assert data[-1] == "data: [DONE]"


def test_an_error_after_a_keep_alive_is_an_event(
    client: openai.OpenAI, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "KEEP_ALIVE_S", 0.001)
    engine.reply = None
    with client.chat.completions.create(model="tiny", messages=HELLO, stream=True) as chunks:
        engine.finish(engine.last, FinishReason.ERROR, error=IntegrityError("block 7 is lost"))
        with pytest.raises(openai.APIError, match="block 7 is lost"):
            list(chunks)
