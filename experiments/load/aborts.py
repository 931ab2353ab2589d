"""Requests of which half are broken off, in eleven ways; nothing of them may be left."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx

from experiments.bench.metrics_page import samples
from experiments.bench.server_process import ServerProcess
from experiments.load.connections import CHAT, COMPLETIONS, Address, stream

AT_ONCE = 32  # clients
POLL_S = 0.1
IDLE_TIMEOUT_S = 120.0

Left = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]


async def measure(server: ServerProcess, num_requests: int) -> dict[str, Any]:
    """Send the requests in two halves, and return what the second has left."""
    address, outcomes = Address.of(server.url), Counter[str]()
    await _half(address, num_requests // 2, outcomes, seed=0)
    before = await _left(server)
    await _half(address, num_requests - num_requests // 2, outcomes, seed=1)
    after = await _left(server)
    return {
        **{name: outcomes[name] for name in ("whole", "refused", "unclear", "broken_off")},
        "leased_fraction": after["leased_fraction"],
        "threads_more": after["threads"] - before["threads"],
        "handles_more": after["handles"] - before["handles"],
        "resident_mb": after["resident_bytes"] / 1e6,
        "memory_ratio": after["resident_bytes"] / before["resident_bytes"],
    }


async def _half(address: Address, num_requests: int, outcomes: Counter[str], seed: int) -> None:
    numbers, rng = iter(range(num_requests)), random.Random(seed)

    async def client() -> None:
        for number in numbers:
            if number % 2:
                way = WAYS[number // 2 % len(WAYS)]
                with suppress(OSError, EOFError, TimeoutError):
                    async with asyncio.timeout(60), address.connection() as (reader, writer):
                        await way(reader, writer, address.request(*_request(rng, is_stream=True)))
                outcomes["broken_off"] += 1
            else:
                outcomes[(await stream(address, *_request(rng))).outcome] += 1

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))


def _request(rng: random.Random, is_stream: bool = False) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {"max_tokens": rng.randint(1, 24), "n": rng.choice([1, 1, 1, 2])}
    if is_stream:
        body["stream"] = True
    text = f"{rng.random()} " * rng.randint(1, 20)
    if rng.random() < 0.5:
        return COMPLETIONS, {"prompt": text, **body}
    return CHAT, {"messages": [{"role": "user", "content": text}], **body}


async def _left(server: ServerProcess) -> dict[str, float]:
    """Return what the server holds once it has nothing to do, and no cache."""
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=30) as http,
        asyncio.timeout(IDLE_TIMEOUT_S),
    ):
        while await _num_requests(http):
            await asyncio.sleep(POLL_S)
        (await http.post("/flush_cache")).raise_for_status()
        leased = await _gauge(http, "vllm:kv_cache_usage_perc")
    return {
        "leased_fraction": leased,
        "threads": server.num_threads(),
        "handles": server.num_handles(),
        "resident_bytes": server.resident_bytes(),
    }


async def _num_requests(http: httpx.AsyncClient) -> float:
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
    return sum([await _gauge(http, name) for name in names])


async def _gauge(http: httpx.AsyncClient, name: str) -> float:
    page = (await http.get("/metrics")).raise_for_status().text
    return sum(value for _, value in samples(page, name))


async def _connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: bytes) -> None:
    """Leaves without a request."""


async def _half_a_head(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> None:
    writer.write(request[:20])
    await writer.drain()


async def _no_body(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> None:
    writer.write(request[: request.index(b"\r\n\r\n") + 4])
    await writer.drain()


async def _half_a_body(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> None:
    writer.write(request[:-10])
    await writer.drain()


async def _at_once(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> None:
    writer.write(request)
    await writer.drain()


async def _half_closed(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> None:
    writer.write(request)
    writer.write_eof()
    await asyncio.sleep(0.05)


async def _while_computed(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> None:
    writer.write(request.replace(b'"stream": true', b'"stream":false'))
    await asyncio.sleep(0.05)


async def _at_the_head(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> None:
    writer.write(request)
    await reader.readuntil(b"\r\n\r\n")


async def _at_the_first_token(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> None:
    writer.write(request)
    await reader.readuntil(b"data: ")


async def _after_some_tokens(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> None:
    writer.write(request)
    for _ in range(4):
        await reader.readuntil(b"data: ")


async def _pipelined(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> None:
    writer.write(request * 3)
    await reader.readuntil(b"data: ")


WAYS: tuple[Left, ...] = (
    _connect,
    _half_a_head,
    _no_body,
    _half_a_body,
    _at_once,
    _half_closed,
    _while_computed,
    _at_the_head,
    _at_the_first_token,
    _after_some_tokens,
    _pipelined,
)
