"""Limits on one connection: sizes, counts, and the time of its client."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kvflow_jax.serve import http_protocol
from tests.serve.serve_fakes import TIMEOUT_S, FakeRequest, LiveServer, live_server
from tests.serve.serve_requests import CHAT, raw_completion_request

START = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\n".encode()
ENDLESS = 4 << 20  # bytes, more than any limit


@contextmanager
def connection_to(live: LiveServer) -> Iterator[socket.socket]:
    with socket.create_connection(live.address, TIMEOUT_S) as connection:
        yield connection


def answer_to(live: LiveServer, *pieces: bytes) -> bytes:
    """Return all that the server sends until it closes the connection."""
    with connection_to(live) as connection:
        return exchange(connection, *pieces)


def exchange(connection: socket.socket, *pieces: bytes) -> bytes:
    answer = b""
    try:
        for piece in pieces:
            connection.sendall(piece)
        while part := connection.recv(1 << 16):
            answer += part
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server closed while this side still sent
    return answer


def error_in(answer: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]


@pytest.mark.parametrize(
    ("start", "endless", "statuses"),
    [
        (START + b"X: ", b"a", {431}),
        (START, b"a", {431}),  # the name of a header
        (START + b"X:", b" ", {431}),
        # A folded line; the parser refuses one whose beginning came with the line before.
        (START + b"X: 1\r\n ", b"a", {400, 431}),
        (START, b"X: 1\r\n", {431}),
        (b"", b"\r\n", {431}),
        (b"GET /", b"a", {414}),
        (b"GET /?", b"a", {414}),
        (b"", b"a", {400}),
        (b"GET / HTTP/1.1", b"a", {400}),
    ],
)
def test_a_head_without_an_end_is_refused(
    live: LiveServer, start: bytes, endless: bytes, statuses: set[int]
) -> None:
    piece = endless * ((1 << 15) // len(endless))
    answer = answer_to(live, start + piece, *[piece] * (ENDLESS // len(piece)))
    # Nothing, if the client's side had to be reset before it read the answer.
    assert not answer or error_in(answer)[0] in statuses


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (START + b"X: " + b"a" * http_protocol.MAX_HEADER_BYTES, 431),
        (START + b"X: 1\r\n" * http_protocol.MAX_NUM_HEADERS, 431),
        (START + (b"X: " + b"a" * 9000 + b"\r\n") * 8, 431),
        (b"GET /" + b"a" * http_protocol.MAX_URL_BYTES + b" HTTP/1.1\r\nHost: localhost", 414),
        (b"GET /\x00 HTTP/1.1", 400),
    ],
)
def test_a_head_over_a_limit_is_answered_with_the_reason(
    live: LiveServer, head: bytes, status: int
) -> None:
    found, error = error_in(answer_to(live, head + b"\r\n\r\n"))
    assert found == status
    assert error["message"]


def test_a_head_within_the_limits_is_served(live: LiveServer) -> None:
    header = b"X: " + b"a" * (http_protocol.MAX_HEADER_BYTES - 10) + b"\r\n"
    few = b"Y: 1\r\n" * (http_protocol.MAX_NUM_HEADERS - 10)
    for head in (
        START + header * 3,
        START + few,
        START.replace(b" HTTP", b"?" + b"a" * 8000 + b" HTTP"),
    ):
        answer = answer_to(live, head + b"Connection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "endless", [b"5;" + b"a" * ENDLESS, b"0\r\n" + b"X: 1\r\n" * (ENDLESS // 6)]
)
def test_what_surrounds_the_parts_of_a_body_is_bounded(live: LiveServer, endless: bytes) -> None:
    answer = answer_to(live, POST + b"Transfer-Encoding: chunked\r\n\r\n", endless)
    assert not answer or error_in(answer)[0] == 431


def test_many_pipelined_requests_close_the_connection(live: LiveServer) -> None:
    live.engine.reply = None
    request = raw_completion_request("a", True)
    with connection_to(live) as connection:
        connection.sendall(request)
        (first,) = live.engine.wait_for_requests(1)
        exchange(connection, START + b"\r\n" + (START + b"\r\n") * 50)
        live.engine.wait_for(lambda: first.request_id in live.engine.aborted)


def test_a_few_pipelined_requests_are_answered_in_order(live: LiveServer) -> None:
    last = START.replace(b"/health", b"/version") + b"Connection: close\r\n\r\n"
    answer = answer_to(live, (START + b"\r\n") * 4 + last)
    assert answer.count(b"HTTP/1.1 200") == 5
    assert answer.rindex(b'"version"') > answer.rindex(b'"status"')


@pytest.mark.parametrize("num_pipelined", [1, 3])
def test_a_client_that_pipelines_and_leaves_is_noticed(
    live: LiveServer, num_pipelined: int
) -> None:
    live.engine.reply = None
    with connection_to(live) as connection:
        connection.sendall(raw_completion_request("a", True))
        (first,) = live.engine.wait_for_requests(1)
        connection.sendall(raw_completion_request("b" * 100_000, True) * num_pipelined)
    live.engine.wait_for(lambda: first.request_id in live.engine.aborted)
    # Those that waited are not begun for nobody.
    assert live.engine.num_submitted == first.request_id + 1


@pytest.fixture(scope="module")
def hasty() -> Iterator[LiveServer]:
    """A server that gives its clients no time."""
    with live_server(client_timeout_s=1e-3) as server:
        yield server


@pytest.mark.parametrize("sent", [START[:30], POST + b"Content-Length: 9\r\n\r\n{", START])
def test_a_slow_client_gets_a_408(hasty: LiveServer, sent: bytes) -> None:
    status, error = error_in(answer_to(hasty, sent))
    assert (status, error["code"]) == (408, "request_timeout")


def test_a_client_that_sends_nothing_is_closed_without_a_word(hasty: LiveServer) -> None:
    assert answer_to(hasty) == b""


def test_a_body_that_arrives_after_its_answer_has_no_end(hasty: LiveServer) -> None:
    answer = answer_to(hasty, POST + b"Content-Type: text/plain\r\nContent-Length: 9\r\n\r\n{")
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.startswith(b"HTTP/1.1 415")


@contextmanager
def running_stream(live: LiveServer) -> Iterator[tuple[socket.socket, FakeRequest]]:
    """Yield the connection of a stream, and its request, which waits for the test."""
    live.engine.reset()
    live.engine.reply = None
    with connection_to(live) as connection:
        connection.sendall(raw_completion_request("a", True))
        (request,) = live.engine.wait_for_requests(1)
        yield connection, request


def test_a_client_that_does_not_read_is_closed(hasty: LiveServer) -> None:
    with running_stream(hasty) as (_, request):
        for _ in range(200):
            hasty.engine.emit(request, "x" * (1 << 17))
        hasty.engine.wait_for(lambda: request.request_id in hasty.engine.aborted)


def test_a_long_answer_is_no_slow_client(hasty: LiveServer) -> None:
    with running_stream(hasty) as (connection, request):
        # That this one is closed shows that the other has been looked at.
        answer_to(hasty)
        hasty.engine.emit(request, "late")
        hasty.engine.finish(request)
        text = b""
        while b"[DONE]" not in text:
            text += connection.recv(1 << 16)
        assert b"late" in text


def test_one_connection_more_takes_the_place_of_an_idle_one() -> None:
    with live_server(max_connections=2) as live, connection_to(live) as idle:
        live.engine.reply = None
        with connection_to(live) as busy:
            busy.sendall(raw_completion_request("a", True))
            live.engine.wait_for_requests(1)
            assert answer_to(live, START + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200")
            assert idle.recv(1) == b""
            with connection_to(live) as second:
                second.sendall(raw_completion_request("b", True))
                live.engine.wait_for_requests(2)
                status, error = error_in(answer_to(live))
                assert (status, error["code"]) == (503, "too_many_connections")


def test_an_upgrade_is_answered_in_http_1(live: LiveServer) -> None:
    answer = answer_to(live, START + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")


def test_a_client_that_speaks_https_is_named_in_the_log_once(
    live: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    http_protocol._warn_of_tls.cache_clear()
    for _ in range(2):
        assert error_in(answer_to(live, b"\x16\x03\x01\x02\x00\x01\x00"))[0] == 400
    assert caplog.text.count("https://") == 1
