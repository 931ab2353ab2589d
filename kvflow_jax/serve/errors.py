"""Errors as OpenAI's ``{"error": {message, type, param, code}}`` with their HTTP status."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvflow_jax.errors import (
    EngineClosedError,
    EngineStalledError,
    GrammarError,
    InvalidRequestError,
    KVFlowError,
    QueueFullError,
)

logger = logging.getLogger("kvflow_jax.serve")

STATUS_CLIENT_CLOSED = 499  # nginx's status of a client that has disconnected
MAX_SEGMENTS = 8  # of an unknown path, at whose beginnings a route is looked for
MAX_LOGGED_MISTAKES, MAX_LOGGED_CHARS = 16, 300  # of clients' configurations; of each
_MISTAKES = frozenset(["model_not_found", "invalid_api_key"])

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """An error response.

    Args:
        status: HTTP status; determines ``type``.
        message: what is wrong and what to do about it.
        param: the invalid field of the request.
        code: stable, machine-readable name.
        headers: additional response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    @property
    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


def aborted_by_caller() -> ApiError:
    """Return the error of a request that ``/abort_request`` has ended."""
    return ApiError(
        STATUS_CLIENT_CLOSED, "the request was aborted by its caller", code="request_aborted"
    )


class ClientDisconnectedError(Exception):
    """The client closed its connection; its generation has been aborted."""


def to_api_error(error: BaseException) -> ApiError:
    """Return the response for an error; unexpected errors reveal no detail to clients."""
    match error:
        case ApiError():
            return error
        case InvalidRequestError():
            return ApiError(400, str(error), param=error.param, code=error.code)
        case QueueFullError():
            return ApiError(
                429,
                str(error),
                code="queue_full",
                headers={"Retry-After": str(error.retry_after_s)},
            )
        case EngineClosedError():
            return ApiError(503, str(error), code="engine_closed")
        case EngineStalledError():
            return ApiError(503, str(error), code="stalled")
        case GrammarError():
            return ApiError(400, str(error), code="grammar_error")
        case KVFlowError():
            return ApiError(500, str(error), code="engine_error")
        case _:
            return ApiError(500, "internal error; see the server's log for details")


def install_error_handlers(
    app: FastAPI, formats: Mapping[str, Callable[[ApiError], Response]]
) -> None:
    """Answer every error of ``app``, including those of routing, in OpenAI's format.

    Args:
        formats: other formats, by the prefix of the paths that have them.
    """
    app.state.error_formats = formats
    app.state.logged_mistakes = set()
    app.add_exception_handler(ApiError, _handle_error)
    app.add_exception_handler(KVFlowError, _handle_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)
    app.add_exception_handler(ClientDisconnect, _handle_disconnect)
    # After this handler Starlette raises the error again, so that uvicorn logs the traceback.
    app.add_exception_handler(Exception, _handle_error)


class DisconnectMiddleware:
    """ASGI middleware that ends a request quietly if its client has disconnected.

    The transport reports a disconnect by raising from the next ``send``. Without this middleware
    the server would log a traceback for each.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def checked_send(message: Message) -> None:
            try:
                await send(message)
            except (RuntimeError, OSError) as error:
                if isinstance(error, RuntimeError) and "closed" not in str(error):
                    raise
                raise ClientDisconnectedError("the client closed its connection") from error

        try:
            await self._app(scope, receive, checked_send)
        except ClientDisconnectedError:
            logger.debug("a client disconnected before its answer")


async def _handle_error(request: Request, error: Exception) -> Response:
    return _error_response(request, to_api_error(error))


def _error_response(request: Request, error: ApiError) -> Response:
    if error.code in _MISTAKES:
        _log_mistake(request, error.message)
    formats: Mapping[str, Callable[[ApiError], Response]] = request.app.state.error_formats
    for prefix, respond in formats.items():
        if request.url.path.startswith(prefix):
            return respond(error)
    return error.response()


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    route = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        hint = _route_hint(request)
        message = f"no such route: {route}; {hint}"
        if "base URL" in hint:
            _log_mistake(request, message)
    elif error.status_code == 405:
        allowed = ", ".join(_methods_of(request, request.url.path))
        message = f"method not allowed: {route}; this route accepts {allowed}"
        return _error_response(request, ApiError(405, message, headers={"Allow": allowed}))
    else:
        message = str(error.detail)
    headers = dict(error.headers) if error.headers else None
    return _error_response(request, ApiError(error.status_code, message, headers=headers))


def _log_mistake(request: Request, message: str) -> None:
    """Log what a client's configuration has wrong: agents may show a text of their own instead.

    Each mistake is logged once, and only the first ones, since clients choose the text.
    """
    logged: set[str] = request.app.state.logged_mistakes
    text = "".join(c if c.isprintable() else "?" for c in message[:MAX_LOGGED_CHARS])
    if text not in logged and len(logged) < MAX_LOGGED_MISTAKES:
        logged.add(text)
        logger.info("refused a request: %s", text)


def _route_hint(request: Request) -> str:
    """Return what to do about a path that is no route: the route that it ends in, or the list."""
    segments = request.url.path.strip("/").split("/")
    for start in range(min(len(segments), MAX_SEGMENTS)):
        end = "/" + "/".join(segments[start:])
        for meant in (end, f"/v1{end}"):
            if not _methods_of(request, meant):
                continue
            if not meant.startswith("/v1/"):
                return f"it is {meant}"
            # Anthropic's clients add /v1 themselves.
            base = str(request.base_url) + ("" if meant.startswith("/v1/messages") else "v1")
            return f"it is {meant}: the client's base URL must be {base.rstrip('/')}"
    return "GET /docs lists the routes"


def _methods_of(request: Request, path: str) -> list[str]:
    """Return the methods of a path over all routes; Starlette lists only the first route's."""
    return [
        method
        for method in ("DELETE", "GET", "POST", "PUT")
        if any(
            route.matches({**request.scope, "method": method, "path": path})[0] is Match.FULL
            for route in request.app.routes
        )
    ]


async def _handle_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=STATUS_CLIENT_CLOSED)
