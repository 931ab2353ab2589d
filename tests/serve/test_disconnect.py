from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Iterator
from logging.handlers import QueueHandler
from queue import SimpleQueue

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.serve.errors import DisconnectMiddleware
from tests.serve.serve_fakes import TIMEOUT_S, FakeEngine, LiveServer

HELLO = [{"role": "user", "content": "hi"}]


def completion_request(prompt: str | list[str], stream: bool) -> bytes:
    body = json.dumps({"prompt": prompt, "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.fixture
def failures() -> Iterator[SimpleQueue[logging.LogRecord]]:
    """What an operator would find in the log of the server: warnings and worse, tracebacks too."""
    records: SimpleQueue[logging.LogRecord] = SimpleQueue()
    handler = QueueHandler(records)
    handler.setLevel(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("uvicorn.error", "kvflow_jax.serve")]
    for logger in loggers:
        logger.addHandler(handler)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


def test_leaving_a_stream_aborts(http: httpx.Client, engine: FakeEngine) -> None:
    engine.reply, engine.first_texts = None, ["a"]
    body = {"messages": HELLO, "stream": True}
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert next(answer.iter_lines()).startswith("data: ")
    request = engine.last
    engine.wait_for(lambda: engine.aborted == [request.request_id])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_leaving_before_the_first_token_aborts(
    live: LiveServer, engine: FakeEngine, stream: bool, prompt: str | list[str]
) -> None:
    engine.reply = None
    with socket.create_connection(live.address, TIMEOUT_S) as connection:
        connection.sendall(completion_request(prompt, stream))
        requests = engine.wait_for_requests(len(prompt))
    engine.wait_for(lambda: sorted(engine.aborted) == [r.request_id for r in requests])
    engine.settle()
    assert engine.stats.num_finished == {FinishReason.ABORT.value: len(requests)}


def test_a_finished_request_is_not_aborted(http: httpx.Client, engine: FakeEngine) -> None:
    for stream in (False, True):
        body = {"messages": HELLO, "stream": stream}
        http.post("/v1/chat/completions", json=body).raise_for_status()
    assert engine.aborted == []


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_leaves_no_traceback_in_the_log(
    live: LiveServer,
    http: httpx.Client,
    engine: FakeEngine,
    failures: SimpleQueue[logging.LogRecord],
    stream: bool,
) -> None:
    engine.reply = None
    with socket.create_connection(live.address, TIMEOUT_S) as connection:
        # Uvicorn tells only the last of pipelined requests that its client has left; the first
        # finds out when it writes its answer into a closed connection.
        connection.sendall(2 * completion_request("a", stream))
        (request,) = engine.wait_for_requests(1)
    http.get("/health")  # by its answer the server knows that the connection is closed
    engine.emit(request, "too late")
    engine.finish(request)
    engine.settle()
    http.get("/health")  # and by this one it has tried to answer
    while not failures.empty():  # uvicorn has a line for an answer cut short
        assert "Traceback" not in failures.get().getMessage()


@pytest.mark.parametrize(
    ("error", "has_left"),
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
def test_a_bad_answer_is_a_failure_and_a_closed_connection_is_none(
    error: Exception, has_left: bool
) -> None:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def receive() -> Message:
        raise AssertionError("nothing to receive")

    async def send(message: Message) -> None:
        raise error

    request = DisconnectMiddleware(answer)({"type": "http"}, receive, send)
    if has_left:
        asyncio.run(request)
    else:
        with pytest.raises(type(error), match=str(error)):
            asyncio.run(request)


def test_a_failure_is_in_the_log_while_its_client_waits(
    live: LiveServer,
    http: httpx.Client,
    failures: SimpleQueue[logging.LogRecord],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(text: str) -> list[int]:
        raise RuntimeError("the vocabulary is closed")

    monkeypatch.setattr(live.tokenizer, "encode", fail)
    assert http.post("/v1/completions", json={"prompt": "a"}).status_code == 500
    record = failures.get(timeout=TIMEOUT_S)
    assert "RuntimeError: the vocabulary is closed" in record.getMessage()
    assert failures.empty()
