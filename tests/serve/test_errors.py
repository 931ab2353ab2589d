from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from logging.handlers import QueueHandler
from queue import SimpleQueue

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from kvflow_jax.errors import QueueFullError
from kvflow_jax.serve.errors import MAX_LOGGED_CHARS, MAX_LOGGED_MISTAKES, DisconnectMiddleware
from tests.serve.serve_fakes import TIMEOUT_S, FakeEngine, LiveServer, live_server
from tests.serve.serve_requests import CHAT, error_of, raw_completion_request


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_longer_than_the_context_is_a_400(
    http: httpx.Client, engine: FakeEngine, stream: bool
) -> None:
    prompt = "x" * engine.max_model_len
    answer = http.post("/v1/completions", json={"prompt": prompt, "stream": stream})
    assert error_of(answer, 400)["code"] == "context_length_exceeded"


def test_an_unknown_route_is_a_404_and_a_wrong_method_a_405(http: httpx.Client) -> None:
    assert "/v2/chat" in error_of(http.post("/v2/chat"), 404)["message"]
    answer = http.get(CHAT)
    assert "POST" in error_of(answer, 405)["message"]
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("path", "meant", "base"),
    [
        ("/chat/completions", CHAT, "/v1"),
        ("/models", "/v1/models", "/v1"),
        ("/models/owner/name", "/v1/models/owner/name", "/v1"),
        ("/v1/v1/completions", "/v1/completions", "/v1"),
        ("/v1/v1/messages", "/v1/messages", ""),
        ("/v1/chat/completions/chat/completions", CHAT, "/v1"),
        ("/openai/deployments/name/chat/completions", CHAT, "/v1"),
    ],
)
def test_a_wrong_base_url_is_a_404_that_says_so(
    live: LiveServer, http: httpx.Client, path: str, meant: str, base: str
) -> None:
    answer = http.post(path, json={})
    assert answer.status_code == 404
    expected = f"it is {meant}: the client's base URL must be {live.url}{base}"
    assert answer.json()["error"]["message"].endswith(expected)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/", "GET /docs lists the routes"),
        ("/v1", "GET /docs lists the routes"),
        ("/v1/embeddings", "GET /docs lists the routes"),
        ("/a" * 1000 + "/models", "GET /docs lists the routes"),
        ("/v1/tokenize", "it is /tokenize"),
    ],
)
def test_an_unknown_route_names_the_one_that_it_ends_in(
    http: httpx.Client, path: str, hint: str
) -> None:
    assert error_of(http.post(path, json={}), 404)["message"].endswith(f"{path}; {hint}")


def test_a_mistake_in_a_clients_configuration_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chat = {"model": "gpt\n4", "messages": [{"role": "user", "content": "a"}]}
    with (
        caplog.at_level(logging.INFO, "kvflow_jax.serve"),
        live_server(api_keys=("right",)) as live,
        httpx.Client(base_url=live.url, headers={"x-api-key": "right"}, timeout=TIMEOUT_S) as http,
    ):
        for _ in range(2):
            answers = [http.post("/v1/v1/messages", json={}), http.post(CHAT, json=chat)]
            http.post("/v2/chat", json={})  # it may be a scanner's, and is not logged
            http.get("/v1/models", headers={"x-api-key": "wrong"})
        first, second = (error_of(answer, 404)["message"] for answer in answers)
        assert refusals(caplog) == [first, second.replace("\n", "?"), "invalid API key"]
        for number in range(2 * MAX_LOGGED_MISTAKES):
            http.post(CHAT, json={**chat, "model": f"{number}" + "x" * MAX_LOGGED_CHARS})
    assert len(refusals(caplog)) == MAX_LOGGED_MISTAKES
    assert {len(text) for text in refusals(caplog)[3:]} == {MAX_LOGGED_CHARS}


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    before = "refused a request: "
    texts = [record.getMessage() for record in caplog.records]
    return [text.removeprefix(before) for text in texts if text.startswith(before)]


def test_an_unexpected_error_reveals_no_detail(http: httpx.Client) -> None:
    answer = http.post(CHAT, json={"messages": [{"role": "user", "content": "explode"}]})
    error = error_of(answer, 500)
    assert error["type"] == "server_error"
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text


def test_a_full_queue_is_a_429_with_retry_after(http: httpx.Client, engine: FakeEngine) -> None:
    engine.submit_error = QueueFullError("8 requests wait, --max-waiting is 8", retry_after_s=3)
    answer = http.post("/v1/completions", json={"prompt": "a"})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.json()["error"]["type"] == "rate_limit_error"


@pytest.fixture
def failures() -> Iterator[SimpleQueue[logging.LogRecord]]:
    """The server's log records of level warning and above."""
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()
    handler = QueueHandler(records)
    handler.setLevel(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "kvflow_jax.serve")]
    for logger in loggers:
        logger.addHandler(handler)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


@pytest.mark.parametrize("stream", [False, True])
def test_a_disconnect_logs_no_traceback(
    live: LiveServer,
    http: httpx.Client,
    engine: FakeEngine,
    failures: SimpleQueue[logging.LogRecord],
    stream: bool,
) -> None:
    engine.reply = None
    with socket.create_connection(live.address, TIMEOUT_S) as connection:
        # Uvicorn reports a disconnect only to the last of pipelined requests; the first detects it
        # when it writes its answer into the closed connection.
        connection.sendall(2 * raw_completion_request("a", stream))
        (request,) = engine.wait_for_requests(1)
    # Once this is answered, the server has seen that the connection is closed.
    http.get("/health")
    engine.emit(request, "too late")
    engine.finish(request)
    engine.settle()
    # Once this is answered, the server has tried to answer the first request.
    http.get("/health")
    # Uvicorn may log a line about the incomplete answer.
    while not failures.empty():
        assert "Traceback" not in failures.get().getMessage()


@pytest.mark.parametrize(
    ("error", "is_disconnect"),
    [
        (
            RuntimeError("unable to perform operation on <TCPTransport>; the handler is closed"),
            True,
        ),
        (ConnectionResetError("Connection lost"), True),
        (RuntimeError("Response content longer than Content-Length"), False),
        (ValueError("not bytes"), False),
    ],
)
def test_only_a_closed_connection_is_ignored_while_sending(
    error: Exception, is_disconnect: bool
) -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> Message:
        raise AssertionError("nothing to receive")

    async def send(message: Message) -> None:
        raise error

    request = DisconnectMiddleware(answer)({"type": "http"}, receive, send)
    if is_disconnect:
        asyncio.run(request)
    else:
        with pytest.raises(type(error), match=str(error)):
            asyncio.run(request)


def test_an_unexpected_error_is_logged_with_its_traceback(
    live: LiveServer,
    http: httpx.Client,
    failures: SimpleQueue[logging.LogRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(text: str, **_: object) -> list[int]:
        raise RuntimeError("the vocabulary is closed")

    monkeypatch.setattr(live.tokenizer, "encode", fail)
    assert http.post("/v1/completions", json={"prompt": "a"}).status_code == 500
    record = failures.get(timeout=TIMEOUT_S)
    assert "RuntimeError: the vocabulary is closed" in record.getMessage()
    assert failures.empty()
