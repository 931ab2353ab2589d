"""Requests 1 to 8: discovery, headers, errors, hang-ups."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from kvflow_jax.runtime.batch import Batch
from tests.serve.serve_fakes import TIMEOUT_S
from tests.serve.serve_requests import CHAT, HELLO, error_of
from tests.serve.wire.wire_requests import ok
from tests.support.scripted_runner import ScriptedServer, ScriptedStep, scripted_server

KEY = "secret"
NAME = "org/model"
SMALL = "haiku"  # a second name, for clients that ask for a smaller model
PAGE = "https://app.example.com"


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    settings = {"served_model_names": (NAME, SMALL), "allowed_origins": (PAGE,)}
    with scripted_server(max_body_mib=0.25, api_keys=(KEY,), **settings) as server:
        yield server


@pytest.fixture(scope="module")
def http(server: ScriptedServer) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60) as http:
        yield http


@pytest.fixture(scope="module")
def client(server: ScriptedServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(server: ScriptedServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0) as claude:
        yield claude


def test_01_the_models(client: openai.OpenAI, http: httpx.Client) -> None:
    assert [model.id for model in client.models.list()] == [NAME, SMALL]
    models = ok(http.get("/v1/models"))
    for card, codex in zip(models["data"], models["models"], strict=True):
        assert card["max_model_len"] == card["context_length"] == card["meta"]["n_ctx"] == 8192
        name = card["id"]
        assert codex == {"slug": name, "display_name": name, "context_window": 8192}


def test_02_a_model_by_its_name(client: openai.OpenAI) -> None:
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("org/other")
    assert raised.value.code == "model_not_found"


def test_03_anthropics_headers(server: ScriptedServer, claude: anthropic.Anthropic) -> None:
    server.script("Hello.", "Hello.")
    message = claude.messages.create(model=NAME, max_tokens=20, messages=HELLO)
    assert message.content[0].text == "Hello."
    # Version 1 of the client and Claude Code send the key so.
    headers = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
    body = {"model": NAME, "max_tokens": 20, "messages": HELLO}
    ok(httpx.post(f"{server.url}/v1/messages", json=body, headers=headers))


def test_04_headers_and_queries_without_a_meaning(
    server: ScriptedServer, http: httpx.Client
) -> None:
    server.script("a", "b")
    headers = {
        "anthropic-beta": "context-1m-2025-08-07,unknown",
        "x-stainless-lang": "python",
        "x-stainless-retry-count": "0",
        "openai-organization": "org-1",
        "openai-project": "p",
    }
    body = {"model": NAME, "max_tokens": 8, "messages": HELLO}
    for path in (f"{CHAT}?beta=true", "/v1/messages?beta=true"):
        ok(http.post(path, json=body, headers=headers))


def test_05_preflights_and_heads(server: ScriptedServer) -> None:
    headers = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{server.url}{CHAT}", headers=headers)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == PAGE
    assert httpx.head(f"{server.url}/health").status_code == 200


def test_06_a_second_model_name(
    server: ScriptedServer, http: httpx.Client, claude: anthropic.Anthropic
) -> None:
    server.script("Hello.")
    claude.messages.create(model=SMALL, max_tokens=20, messages=HELLO)
    body = {"model": "claude-3-5-haiku", "messages": HELLO}
    error = error_of(http.post(CHAT, json=body), 404)
    assert error["code"] == "model_not_found"
    assert NAME in error["message"]
    assert SMALL in error["message"]


def test_07_errors_in_the_dialect_of_the_route(http: httpx.Client) -> None:
    large, broken = b'{"x": "%s"}' % (b"y" * 2**18), b'{"messages": ['
    for content, status in ((large, 413), (broken, 400)):
        for path in (CHAT, "/v1/completions", "/v1/responses"):
            error_of(http.post(path, content=content), status)
        answer = http.post("/v1/messages", content=content)
        assert answer.status_code == status
        body = answer.json()
        assert body["type"] == "error"
        assert set(body["error"]) == {"type", "message"}


def test_08_a_client_that_hangs_up_in_prefill(
    server: ScriptedServer, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, is_aborted = threading.Event(), threading.Event()
    abort, submit = server.engine.abort, server.runner.submit

    def notice(request_id: int) -> None:
        abort(request_id)
        is_aborted.set()

    def hold(batch: Batch) -> ScriptedStep:
        if has_begun.is_set():  # from the second chunk of the prompt on
            assert is_aborted.wait(TIMEOUT_S)
        has_begun.set()
        return submit(batch)

    monkeypatch.setattr(server.engine, "abort", notice)
    monkeypatch.setattr(server.runner, "submit", hold)
    server.script("a")
    messages = [{"role": "user", "content": "word " * 1000}]  # five chunks
    post(server.url, {"messages": messages}, hang_up=has_begun)
    assert is_aborted.wait(TIMEOUT_S)
    monkeypatch.undo()
    body = ok(http.post(CHAT, json={"messages": messages}))
    # Those of the chunks that were computed, and no answer was.
    assert 1024 <= body["usage"]["prompt_tokens_details"]["cached_tokens"] < 4000
    assert body["choices"][0]["message"]["content"] == "a"
    assert ok(http.post("/flush_cache")) == {"flushed": True}
    assert server.engine.stats.num_finished["abort"] == 1


def post(url: str, body: dict[str, Any], *, hang_up: threading.Event) -> None:
    """Send a chat and close the connection once ``hang_up`` is set, without an answer."""
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        assert hang_up.wait(TIMEOUT_S)
