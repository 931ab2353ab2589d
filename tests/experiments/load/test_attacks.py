"""Attacks run beside honest streams, and end with them."""

import asyncio
import json

from experiments.load import attacks
from experiments.load.connections import CHAT
from tests.experiments.load.fake_server import FakeServer


def test_honest_streams_are_counted_beside_attacks(monkeypatch):
    started = []

    async def attack(address):
        started.append(address)
        raise ConnectionResetError

    async def wait(address):
        await asyncio.Event().wait()

    monkeypatch.setattr(attacks, "ATTACKS", (attack, wait))

    async def run():
        async with FakeServer().listening() as address:
            return await attacks.measure(address, 0.5)

    figures = asyncio.run(run())
    assert (figures["whole"], figures["unclear"], figures["health_failed"]) == (1, 0, 0)
    assert started


def test_a_large_body_is_json_of_31_mib():
    server = FakeServer()

    async def run():
        async with server.listening() as address:
            await attacks.body_attack(b"[],")(address)

    asyncio.run(run())
    ((_, path, _, body),) = server.requests
    assert path == CHAT
    assert 31 << 20 <= len(body) < 32 << 20
    assert json.loads(body[:1000].rsplit(b"[],", 1)[0] + b"[]]}")["max_tokens"] == 1


def test_a_request_byte_by_byte_is_a_request(monkeypatch):
    server, sleep = FakeServer(), asyncio.sleep
    monkeypatch.setattr(attacks.asyncio, "sleep", lambda _: sleep(0))

    async def run():
        async with server.listening() as address:
            await attacks.byte_by_byte(address)
            while not server.requests:
                await sleep(0)

    asyncio.run(run())
    assert server.requests[0][3] == b"{}"


def test_two_requests_are_pipelined():
    server = FakeServer()

    async def run():
        async with server.listening() as address:
            await attacks.pipeline_and_leave(address)

    asyncio.run(run())
    assert json.loads(server.requests[0][3])["stream"] is True
