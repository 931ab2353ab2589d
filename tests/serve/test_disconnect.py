from __future__ import annotations

import json
import socket

import httpx
import pytest
from serve_fakes import PATIENCE_S, FakeEngine, LiveServer

from kvflow_jax.outputs import FinishReason

HELLO = [{"role": "user", "content": "hi"}]


def test_leaving_a_stream_aborts(http: httpx.Client, engine: FakeEngine) -> None:
    engine.reply, engine.first_words = None, ["a"]
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
    body = json.dumps({"prompt": prompt, "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(live.address, PATIENCE_S) as connection:
        connection.sendall(head.encode() + body)
        requests = engine.wait_for_requests(len(prompt))
    engine.wait_for(lambda: sorted(engine.aborted) == [r.request_id for r in requests])
    engine.settle()
    assert engine.stats.num_finished == {FinishReason.ABORT.value: len(requests)}


def test_a_finished_request_is_not_aborted(http: httpx.Client, engine: FakeEngine) -> None:
    for stream in (False, True):
        body = {"messages": HELLO, "stream": stream}
        http.post("/v1/chat/completions", json=body).raise_for_status()
    assert engine.aborted == []
