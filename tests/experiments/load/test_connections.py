"""Bare connections: what is sent, and how streams end."""

import asyncio
import json

import pytest

from experiments.load.connections import CHAT, Address, answer_status, stream
from tests.experiments.load.fake_server import STREAM, FakeServer


def read(server, key=None):
    async def run():
        async with server.listening(key) as address:
            return await stream(address, CHAT, {"max_tokens": 2})

    return asyncio.run(run())


def test_a_whole_stream_has_the_times_of_its_tokens_and_its_usage():
    server = FakeServer()
    ended = read(server, "sk-a")
    assert ended.outcome == "whole"
    assert len(ended.token_s) == 2
    assert ended.token_s == sorted(ended.token_s)
    assert ended.usage["prompt_tokens_details"]["cached_tokens"] == 3
    ((method, path, headers, body),) = server.requests
    assert (method, path, headers["authorization"]) == ("POST", CHAT, "bearer sk-a")
    assert json.loads(body)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("server", "outcome"),
    [
        (FakeServer(429, b"Retry-After: 1\r\n"), "refused"),
        (FakeServer(503, b"Retry-After: 1\r\n"), "refused"),
        (FakeServer(503), "unclear"),
        (FakeServer(500, b"Retry-After: 1\r\n"), "unclear"),
    ],
)
def test_a_refusal_is_clear_if_it_says_when_to_come_again(server, outcome):
    assert read(server).outcome == outcome


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n\r\n" + STREAM])
def test_a_stream_that_breaks_off_is_unclear(answer):
    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async def run():
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
            address = Address("127.0.0.1", listener.sockets[0].getsockname()[1])
            return await stream(address, CHAT, {})

    assert asyncio.run(run()).outcome == "unclear"


def test_a_server_that_is_not_there_is_unclear():
    async def run():
        async with FakeServer().listening() as address:
            pass
        return await stream(address, CHAT, {})

    assert asyncio.run(run()).outcome == "unclear"


def test_a_connection_serves_several_requests():
    server = FakeServer(404)

    async def run():
        async with server.listening() as address, address.connection() as pair:
            request = address.request("/a", {"b": 1}, method="PUT")
            return [await answer_status(*pair, request) for _ in range(2)]

    assert asyncio.run(run()) == [404, 404]
    assert [(method, body) for method, _, _, body in server.requests] == [("PUT", b'{"b": 1}')] * 2


def test_an_address_is_that_of_the_url():
    assert Address.of("http://127.0.0.1:80", "k") == Address("127.0.0.1", 80, "k")
