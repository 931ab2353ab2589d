"""Work for a request that ends when its client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from kvflow_jax.serve.errors import ClientDisconnectedError

Result = TypeVar("Result")


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Return what ``work`` returns; cancel it if the client disconnects before.

    Args:
        receive: ASGI's ``receive``, after the body of the request has been read.

    Raises:
        ClientDisconnectedError: the client has disconnected.
    """
    working = asyncio.create_task(work)
    watcher = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait((working, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnectedError("the client closed its connection")
        return working.result()
    finally:
        working.cancel()
        watcher.cancel()


async def _wait_for_disconnect(receive: Receive) -> None:
    # An empty last part of the body may come first.
    while (await receive())["type"] != "http.disconnect":
        pass
