"""Requests that their callers end early, by each id and in each API."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.serve.serve_fakes import FakeEngine, live_server
from tests.serve.serve_requests import CHAT, HELLO, error_of

STREAMED_CHAT = {"messages": HELLO, "stream": True}


def abort(http: httpx.Client, **body: Any) -> int:
    answer = http.post("/abort_request", json=body)
    answer.raise_for_status()
    return answer.json()["num_aborted"]


@pytest.mark.parametrize("by", ["answer", "header", "rid", "request_id", "all"])
def test_an_aborted_stream_ends_with_its_text_and_reason(
    http: httpx.Client, client: openai.OpenAI, engine: FakeEngine, by: str
) -> None:
    engine.reply, engine.first_texts = None, ["so far"]
    own = {"header": {"extra_headers": {"X-Request-Id": "mine"}}}
    own |= {name: {"extra_body": {name: "mine"}} for name in ("rid", "request_id")}
    with client.chat.completions.create(
        model="tiny", messages=HELLO, stream=True, **own.get(by, {})
    ) as stream:
        first = next(stream)
        assert abort(http, rid="another") == 0
        if by == "all":
            assert abort(http, abort_all=True) == 1
        else:
            assert abort(http, rid=first.id if by == "answer" else "mine") == 1
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "so far"
    assert chunks[-1].choices[0].finish_reason == "abort"
    assert not engine.running


@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, {"messages": HELLO}), ("/v1/completions", {"prompt": "a"})]
)
def test_without_streaming_the_text_so_far_is_the_answer(
    http: httpx.Client, engine: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    engine.reply, engine.first_texts = None, ["so far"]
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(http.post, path, json={**body, "rid": "mine", "n": 2})
        engine.wait_for_requests(2)
        engine.settle()
        assert abort(http, rid="mine") == 1
        choices = answer.result().json()["choices"]
    assert [choice["finish_reason"] for choice in choices] == ["abort"] * 2
    assert "so far" in json.dumps(choices)


@pytest.mark.parametrize(
    ("path", "body", "last"),
    [
        ("/v1/responses", {"input": "a"}, "response.failed"),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 9}, "error"),
    ],
)
def test_a_stream_of_events_ends_with_an_error(
    http: httpx.Client, engine: FakeEngine, path: str, body: dict[str, Any], last: str
) -> None:
    engine.reply, engine.first_texts = None, ["so far"]
    with http.stream("POST", path, json={**body, "stream": True, "rid": "mine"}) as answer:
        lines = answer.iter_lines()
        next(line for line in lines if "so far" in line)
        assert abort(http, rid="mine") == 1
        events = [line for line in lines if line.startswith("event: ")]
    assert events[-1] == f"event: {last}"


def test_another_tenants_requests_go_on() -> None:
    with (
        live_server(api_keys=("one", "two")) as live,
        httpx.Client(base_url=live.url, headers={"Authorization": "Bearer one"}) as one,
        httpx.Client(base_url=live.url, headers={"Authorization": "Bearer two"}) as two,
    ):
        live.engine.reply, live.engine.first_texts = None, ["a"]
        headers = {"X-Request-Id": "mine"}
        with one.stream("POST", CHAT, json=STREAMED_CHAT, headers=headers) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert abort(two, rid="mine") == abort(two, abort_all=True) == 0
            assert one.get("/load").json() == {"server_load": 1}
            assert abort(one, rid="mine") == 1
            assert [line for line in lines if line][-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("body", "param"),
    [({}, "rid"), ({"rid": ""}, "rid"), ({"abort_all": False}, "rid"), ({"rid": 7}, "rid")],
)
def test_a_body_that_names_no_request_is_refused(
    http: httpx.Client, body: dict[str, Any], param: str
) -> None:
    assert error_of(http.post("/abort_request", json=body), 400)["param"] == param
