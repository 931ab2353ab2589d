"""ASGI middleware: slashes in paths, HEAD, ids of clients for requests, ends of requests."""

from __future__ import annotations

import re
from contextlib import ExitStack

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = b"x-request-id"
MAX_REQUEST_ID_BYTES = 256


def without_spare_slashes(path: str) -> str:
    """Return a path with one slash between its segments, and none at its end."""
    return re.sub("/{2,}", "/", path).rstrip("/")


class SlashMiddleware:
    """Route ``//v1/models/`` as ``/v1/models``: base URLs often end with a slash.

    A redirect would lose the body with many clients.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": without_spare_slashes(scope["path"]) or "/"}
        await self._app(scope, receive, send)


class HeadMiddleware:
    """Answer HEAD as GET: monitors and load balancers probe any route with it.

    The HTTP server sends the headers alone.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


class RequestIdMiddleware:
    """Repeat the ``X-Request-Id`` of a request in its answer, so that logs can be joined."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = dict(scope.get("headers", ())).get(REQUEST_ID, b"")

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (REQUEST_ID, request_id)]
                message = {**message, "headers": headers}
            await send(message)

        is_echoed = 0 < len(request_id) <= MAX_REQUEST_ID_BYTES
        await self._app(scope, receive, send_with_id if is_echoed else send)


class RequestEndMiddleware:
    """Exit the contexts of ``until_end`` when a request has ended, its answer included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with ExitStack() as contexts:
            scope.setdefault("state", {})["until_end"] = contexts
            await self._app(scope, receive, send)


def until_end(request: Request) -> ExitStack:
    """Return the stack of contexts that are exited when a request ends."""
    contexts: ExitStack = request.state.until_end
    return contexts
