from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest

from kvflow_jax.serve.disconnect import until_disconnect
from kvflow_jax.serve.errors import ClientDisconnectedError


class Connection:
    """ASGI's ``receive`` of a client that leaves when it is told to."""

    def __init__(self) -> None:
        self.is_left = asyncio.Event()
        self.messages: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": b""}]

    async def receive(self) -> MutableMapping[str, Any]:
        if self.messages:
            return self.messages.pop()
        await self.is_left.wait()
        return {"type": "http.disconnect"}


def test_work_returns_its_result_and_raises_its_error() -> None:
    async def succeed() -> int:
        await asyncio.sleep(0)
        return 5

    async def fail() -> int:
        raise KeyError("x")

    async def scenario() -> None:
        connection = Connection()
        assert await until_disconnect(connection.receive, succeed()) == 5
        with pytest.raises(KeyError):
            await until_disconnect(connection.receive, fail())
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1  # no watcher is left

    asyncio.run(scenario())


def test_work_is_cancelled_when_the_client_leaves() -> None:
    async def scenario() -> None:
        connection, is_cancelled = Connection(), asyncio.Event()

        async def work() -> None:
            connection.is_left.set()
            try:
                await asyncio.Event().wait()
            finally:
                is_cancelled.set()

        with pytest.raises(ClientDisconnectedError):
            await until_disconnect(connection.receive, work())
        await is_cancelled.wait()

    asyncio.run(scenario())
