from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from fastapi import Request

from kvflow_jax.serve.auth import LOCAL, ApiKey
from kvflow_jax.serve.request_body import BodyReader
from tests.serve.serve_fakes import TIMEOUT_S, FakeEngine, LiveServer, live_server
from tests.serve.serve_requests import CHAT, HELLO, error_of

LABELS = 'engine="0",model_name="tiny"'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"messages": "\xff"}',
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"prompt": "\\ud800"}',
        b"[" * 30_000,
        b'{"a":' * 30_000,
        b"[]",
        b'"text"',
        b"null",
        b'{"messages": [], "seed": ' + b"9" * 10_000 + b"}",
    ],
)
def test_a_body_that_is_not_a_json_object_is_rejected(
    http: httpx.Client, engine: FakeEngine, body: bytes
) -> None:
    error = error_of(http.post(CHAT, content=body), 400)
    assert error["type"] == "invalid_request_error"
    assert not engine.requests


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""]
)
def test_a_content_type_that_is_not_json_is_a_415(
    http: httpx.Client, engine: FakeEngine, kind: str
) -> None:
    content = b'{"messages": [{"role": "user", "content": "hi"}]}'
    error = error_of(http.post(CHAT, content=content, headers={"Content-Type": kind}), 415)
    assert "application/json" in error["message"]
    assert not engine.requests
    for good in ("application/json; charset=utf-8", "Application/JSON", "application/x+json"):
        http.post(CHAT, content=content, headers={"Content-Type": good}).raise_for_status()
    http.post(CHAT, content=content).raise_for_status()


def test_a_body_over_the_limit_is_a_413(http: httpx.Client, live: LiveServer) -> None:
    large = b"x" * (live.config.max_body_bytes + 1)

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    for content in (large, chunks()):
        error = error_of(http.post(CHAT, content=content), 413)
        assert error["code"] == "body_too_large"
        assert "0.25 MiB" in error["message"]
    # The connection still works, and a body below the limit is accepted.
    body = {"messages": HELLO, "pad": "x" * (live.config.max_body_bytes - 100)}
    assert http.post(CHAT, json=body).status_code == 200


def test_a_body_of_too_many_values_is_a_413() -> None:
    with live_server() as live, httpx.Client(base_url=live.url, timeout=TIMEOUT_S) as http:
        for unknown in ("[" + "[]," * 40_000 + "1]", "[" + "1," * 300_000 + "1]"):
            content = f'{{"messages": [{{"role": "user", "content": "hi"}}], "x": {unknown}}}'
            error = error_of(http.post(CHAT, content=content.encode()), 413)
            assert error["code"] == "body_too_complex"
        # As many in a string are one value.
        body = {"messages": HELLO, "x": "[]," * 200_000}
        assert http.post(CHAT, json=body).status_code == 200
        assert http.put("/v1/workflows/g", json=_graph(num_edges=16_000)).status_code == 200


@pytest.mark.parametrize("num_values", [10, 9_000, 100_000])
def test_what_is_large_is_read_on_a_thread(num_values: int) -> None:
    content = json.dumps({"a": [0] * num_values}).encode()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content}

    reader = BodyReader(1 << 20, lambda: 0)
    request = Request({"type": "http", "headers": [], "state": {"until_end": ExitStack()}}, receive)
    name_of_thread = reader.read(request, "", lambda body: threading.current_thread().name)
    try:
        is_inline = asyncio.run(name_of_thread) == threading.current_thread().name
    finally:
        reader.close()
    assert is_inline == (num_values == 10)


def _graph(num_edges: int) -> dict[str, Any]:
    names = [f"agent-{i}" for i in range(200)]
    edges = [{"source": names[i // 200], "target": names[i % 200]} for i in range(num_edges)]
    return {"nodes": names, "edges": edges}


def test_mistakes_of_a_large_body_are_named() -> None:
    with live_server() as live, httpx.Client(base_url=live.url, timeout=TIMEOUT_S) as http:
        pad = "x" * (1 << 19)
        error = error_of(http.post(CHAT, json={"messages": 3, "pad": pad}), 400)
        assert error["message"] == "messages must be a list"
        error = error_of(http.post(CHAT, json={"messages": [1] * 60_000, "pad": pad}), 400)
        assert error["param"] == "messages[0]"
        bias = {str(i): 1 if i < 100 else "x" for i in range(60_000)}
        error = error_of(http.post(CHAT, json={"messages": HELLO, "logit_bias": bias}), 400)
        assert error["message"] == "more than 100 values are invalid"
        error = error_of(http.post(CHAT, content=f'{{"messages": ["{pad}",]}}'.encode()), 400)
        assert error["code"] == "invalid_json"
        # A position would be one within a part of the body.
        assert "column" not in error["message"]


def test_bodies_of_unfinished_requests_are_refused_beyond_their_memory() -> None:
    with live_server() as live, httpx.Client(base_url=live.url, timeout=TIMEOUT_S) as http:
        memory = live.server.service.bodies.memory
        with memory.reservation(LOCAL) as others:
            others.grow(8 * live.config.max_body_bytes)
            refused = http.post(CHAT, json={"messages": HELLO})
            assert error_of(refused, 429)["code"] == "too_many_bodies"
            assert refused.headers["retry-after"] == str(live.engine.retry_after_s(LOCAL))
            lines = [line.rpartition(" ") for line in http.get("/metrics").text.splitlines()]
            found = {name: value for name, _, value in lines}
            used = found[f'kvflow:tenant_state_bytes{{{LABELS},state="bodies"}}']
            assert float(used) == 8 * live.config.max_body_bytes
            assert found[f"vllm:admission_rejections_total{{{LABELS}}}"] == "1.0"
        assert http.post(CHAT, json={"messages": HELLO}).status_code == 200


def test_bodies_are_refused_while_others_take_their_memory() -> None:
    with live_server() as live, httpx.Client(base_url=live.url, timeout=TIMEOUT_S) as http:
        memory = live.server.service.bodies.memory
        for tenant in range(30):  # each takes as much as it may
            num_left = 16 * live.config.max_body_bytes - memory.used_bytes
            memory.take(str(tenant), num_left // 2, 0)
        refused = http.post(CHAT, json={"messages": HELLO})
        assert error_of(refused, 503)["code"] == "too_many_bodies"


@pytest.mark.parametrize("stream", [False, True])
def test_a_body_is_counted_until_its_answer_has_ended(stream: bool) -> None:
    body = json.dumps({"messages": HELLO, "stream": stream, "pad": "x" * 5000}).encode()
    with live_server() as live, socket.create_connection(live.address) as connection:
        memory = live.server.service.bodies.memory
        live.engine.reply = None
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        (request,) = live.engine.wait_for_requests(1)
        assert memory.used_bytes == len(body)
        live.engine.finish(request)
    assert memory.used_bytes == 0


def test_bodies_are_counted_by_key() -> None:
    with live_server(api_keys=("one", "two")) as live, httpx.Client(base_url=live.url) as http:
        body = {"messages": HELLO}
        with live.server.service.bodies.memory.reservation(ApiKey.of("one").tenant) as others:
            others.grow(8 * live.config.max_body_bytes)
            refused = http.post(CHAT, json=body, headers={"x-api-key": "one"})
            assert error_of(refused, 429)["code"] == "too_many_bodies"
            assert http.post(CHAT, json=body, headers={"x-api-key": "two"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/responses", {"input": 5}, "input"),
        ("/v1/responses", {"input": "hi", "tool_choice": [1]}, "tool_choice"),
        (CHAT, {"messages": HELLO, "logit_bias": {"str": "x"}}, "logit_bias.str"),
    ],
)
def test_a_field_of_several_types_is_named_without_them(
    http: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    error = error_of(http.post(path, json=body), 400)
    assert error["param"] == param
    assert error["message"].startswith(f"{param} must be ")


def test_the_first_invalid_fields_of_a_body_are_named(http: httpx.Client) -> None:
    body = {"messages": HELLO, "n": 0, "seed": "x", "stream": "yes", "user": 3, "top_k": "all"}
    error = error_of(http.post(CHAT, json=body), 400)
    assert error["code"] == "invalid_value"
    assert error["message"].count("; ") == 3
    assert error["message"].endswith("; and 2 more")
    assert error["message"].startswith(f"{error['param']}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": None}, "messages must be a list"),
        ({"messages": "hi"}, "messages must be a list"),
        ({"model": 7}, "model must be a string"),
        ({"seed": "x"}, "seed must be an integer"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"stream": "yes"}, "stream must be true or false"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs must be an object"),
        ({"n": 0}, "n: Input should be greater than or equal to 1"),
    ],
)
def test_a_value_of_the_wrong_type_is_described_in_the_words_of_json(
    http: httpx.Client, fields: dict[str, Any], message: str
) -> None:
    assert error_of(http.post(CHAT, json={"messages": HELLO, **fields}), 400)["message"] == message


def test_a_field_that_is_missing_is_named(http: httpx.Client) -> None:
    assert error_of(http.post(CHAT, json={}), 400)["message"] == "messages is missing"
