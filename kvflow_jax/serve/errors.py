"""Every failure as OpenAI's ``{"error": {message, type, param, code}}`` with its HTTP status."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvflow_jax.errors import EngineClosedError, InvalidRequestError, KVFlowError, QueueFullError

logger = logging.getLogger("kvflow_jax.serve")

STATUS_CLIENT_CLOSED = 499  # nginx's number; nobody is left to read it

_TYPES = {
    401: "authentication_error",
    429: "rate_limit_error",
    499: "client_closed_request",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """An error with its HTTP face.

    Args:
        status: HTTP status; decides ``type``.
        message: what is wrong and what to do.
        param: the offending field of the request.
        code: stable machine-readable name.
        headers: extra response headers.
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


class ClientGoneError(Exception):
    """The client closed its connection: generation has been aborted, nobody reads an answer."""


def to_api_error(error: BaseException) -> ApiError:
    """The HTTP face of any error. Errors not raised on purpose show no detail to clients."""
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
        case KVFlowError():
            return ApiError(500, str(error), code="engine_error")
        case _:
            return ApiError(500, "internal error; the server's log has the details")


def install_error_handlers(app: FastAPI) -> None:
    """Give every failure of ``app``, routing included, OpenAI's shape."""
    app.add_exception_handler(ApiError, _answer)
    app.add_exception_handler(KVFlowError, _answer)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    # Starlette answers with this one, then raises again: uvicorn logs the traceback.
    app.add_exception_handler(Exception, _answer)


class QuietWhenGone:
    """ASGI middleware: a client that left before its answer is no failure of the server.

    The transport tells only by raising at the next send; outside of this a traceback would be
    logged for each.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_or_give_up(message: Message) -> None:
            try:
                await send(message)
            except (RuntimeError, OSError) as error:
                if isinstance(error, RuntimeError) and "closed" not in str(error):
                    raise
                raise ClientGoneError("the client closed its connection") from error

        try:
            await self._app(scope, receive, send_or_give_up)
        except ClientGoneError:
            logger.debug("a client left before its answer")


async def _answer(request: Request, error: Exception) -> Response:
    return to_api_error(error).response()


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        message = f"no such route: {where}"
    elif error.status_code == 405:
        allowed = _allowed(request)
        message = f"wrong method: {where}; this route takes {allowed}"
        return ApiError(405, message, headers={"Allow": allowed}).response()
    else:
        message = str(error.detail)
    headers = dict(error.headers) if error.headers else None
    return ApiError(error.status_code, message, headers=headers).response()


def _allowed(request: Request) -> str:
    """The methods of a path, over all routes: the framework names those of the first alone."""
    return ", ".join(
        method
        for method in ("DELETE", "GET", "POST", "PUT")
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.routes
        )
    )


async def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=STATUS_CLIENT_CLOSED)
