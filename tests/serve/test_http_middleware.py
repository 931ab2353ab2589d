"""What holds for requests of all routes: slashes, HEAD, ids, and what is undone at the end."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from kvflow_jax.serve.http_middleware import RequestEndMiddleware, until_end
from tests.serve.serve_requests import CHAT, HELLO, error_of


@pytest.mark.parametrize("path", [f"{CHAT}/", f"/{CHAT}", "/v1//chat///completions//"])
def test_superfluous_slashes_are_ignored(http: httpx.Client, path: str) -> None:
    url = f"{str(http.base_url).rstrip('/')}{path}"
    answer = http.post(url, json={"messages": HELLO})
    assert answer.status_code == 200
    assert answer.json()["choices"]


def test_the_slash_within_a_models_name_stays(http: httpx.Client) -> None:
    assert "owner/name" in error_of(http.get("/v1/models/owner/name/"), 404)["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_id_is_repeated(http: httpx.Client, stream: bool) -> None:
    body = {"messages": HELLO, "stream": stream}
    answer = http.post(CHAT, json=body, headers={"X-Request-Id": "run-7"})
    assert answer.headers["x-request-id"] == "run-7"
    assert "x-request-id" not in http.post(CHAT, json=body).headers
    refused = http.post("/no/route", headers={"X-Request-Id": "run-8"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (404, "run-8")


def test_an_oversized_request_id_is_not_repeated(http: httpx.Client) -> None:
    answer = http.get("/health", headers={"X-Request-Id": "x" * 257})
    assert answer.status_code == 200
    assert "x-request-id" not in answer.headers


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/metrics", "/openapi.json"])
def test_any_get_route_answers_head_without_a_body(http: httpx.Client, path: str) -> None:
    answer, whole = http.head(path), http.get(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"] == whole.headers["content-type"]


def test_head_is_refused_where_get_is(http: httpx.Client) -> None:
    answer = http.head(CHAT)
    assert (answer.status_code, answer.content) == (405, b"")
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("fails", [False, True])
def test_contexts_are_left_when_a_request_ends(fails: bool) -> None:
    events: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        until_end(Request(scope)).callback(events.append, "end")
        events.append("answer")
        if fails:
            raise RuntimeError

    call = RequestEndMiddleware(app)({"type": "http"}, None, None)  # type: ignore[arg-type]
    if fails:
        with pytest.raises(RuntimeError):
            asyncio.run(call)
    else:
        asyncio.run(call)
    assert events == ["answer", "end"]
