"""A few honest streams beside clients that attack the server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from experiments.load.background import background
from experiments.load.connections import CHAT, Address
from experiments.load.health import watched
from experiments.load.streams import arrivals, outcomes

HONEST_PER_S = 2.0
ATTACK_S = 10.0  # at most, of one connection
RETRY_S = 0.01

Attack = Callable[[Address], Awaitable[None]]


async def measure(address: Address, seconds: float) -> dict[str, Any]:
    """Open honest streams during the attacks, and return the figures."""
    attacks = [_forever(attack, address) for attack in ATTACKS]
    async with watched(address) as health, background(attacks):
        ended = await arrivals(address, max(1, int(seconds * HONEST_PER_S)), HONEST_PER_S)
    return outcomes(ended) | health.figures()


async def _forever(attack: Attack, address: Address) -> None:
    while True:
        # What the server does about it is its own business.
        with suppress(OSError, EOFError, TimeoutError):
            async with asyncio.timeout(ATTACK_S):
                await attack(address)
        await asyncio.sleep(RETRY_S)


def body_attack(item: bytes) -> Attack:
    """Return an attack by bodies of 31 MiB, of one item many times."""

    async def attack(address: Address) -> None:
        hello = b'"messages":[{"role":"user","content":"hi"}],"max_tokens":1'
        body = b"{%b,%b}" % (hello, b'"x":[' + item * ((31 << 20) // len(item)) + b"1]")
        async with address.connection() as (reader, writer):
            writer.write(address.request(CHAT, body))
            await reader.readuntil(b"\r\n\r\n")

    return attack


async def endless_header(address: Address) -> None:
    async with address.connection() as (_, writer):
        writer.write(b"GET /health HTTP/1.1\r\nX: ")
        while True:
            writer.write(b"a" * (1 << 18))
            await writer.drain()


async def byte_by_byte(address: Address) -> None:
    async with address.connection() as (_, writer):
        for byte in address.request(CHAT, b"{}"):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.1)


async def pipeline_and_leave(address: Address) -> None:
    body = {"messages": [{"role": "user", "content": "count"}], "max_tokens": 64, "stream": True}
    async with address.connection() as (reader, writer):
        writer.write(address.request(CHAT, json.dumps(body).encode()) * 2)
        await reader.readuntil(b"\r\n\r\n")


ATTACKS: tuple[Attack, ...] = (
    *map(body_attack, (b"[],", b"1,", b'{"a":1},', b'"\\ud83d\\ude00",')),
    endless_header,
    *[byte_by_byte] * 100,
    *[pipeline_and_leave] * 4,
)
