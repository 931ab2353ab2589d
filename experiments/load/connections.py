"""Bare HTTP connections: cheap for the client, and free to break every rule."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 600.0
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Address:
    """Where the server listens, and the API key that is sent; None: no key."""

    host: str
    port: int
    key: str | None = None

    @classmethod
    def of(cls, url: str, key: str | None = None) -> Address:
        parts = urlsplit(url)
        return cls(parts.hostname or "", parts.port or 0, key)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Yield a connection, reset at the end."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    def request(self, path: str, body: bytes | dict[str, Any], method: str = "POST") -> bytes:
        """Return the bytes of a request, on a connection that stays open."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"Host: {self.host}", "Content-Type: application/json"]
        lines += [f"Content-Length: {len(content)}"]
        lines += [] if self.key is None else [f"Authorization: Bearer {self.key}"]
        head = "".join(f"{line}\r\n" for line in lines)
        return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content


@dataclass
class Stream:
    """How a stream ended.

    Attributes:
        outcome: ``whole``; ``refused``: 429 or 503 with Retry-After; ``unclear``: all else.
        token_s: when each chunk of text came, seconds after the request.
        usage: of the request, as the server counts it.
    """

    outcome: str = "unclear"
    token_s: list[float] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)


async def stream(address: Address, path: str, body: dict[str, Any]) -> Stream:
    """Send a request and read its stream to the end."""
    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    ended, start = Stream(), time.perf_counter()
    try:
        async with asyncio.timeout(TIMEOUT_S), address.connection() as (reader, writer):
            writer.write(address.request(path, body))
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split()[1])
            if status in (429, 503) and b"retry-after:" in head.lower():
                ended.outcome = "refused"
            while status == 200 and ended.outcome == "unclear":
                line = await reader.readline()
                if line.startswith(b"data: [DONE]"):
                    ended.outcome = "whole"
                elif line.startswith(b"data: {"):
                    _note_chunk(ended, json.loads(line[6:]), time.perf_counter() - start)
                elif not line:
                    break
    except (OSError, EOFError, TimeoutError):
        pass
    return ended


async def answer_status(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> int:
    """Send a request on an open connection, and read its answer; return the HTTP status."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            await reader.readexactly(int(line.partition(b":")[2]))
    return int(head.split()[1])


def _note_chunk(ended: Stream, chunk: dict[str, Any], now_s: float) -> None:
    if chunk.get("usage"):
        ended.usage = chunk["usage"]
    if chunk.get("choices"):
        ended.token_s.append(now_s)
