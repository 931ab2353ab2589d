"""Cross-origin requests: which web pages may call the server from a browser."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from kvflow_jax.serve.config import ServerConfig
from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.stream import HINT_STATUS

# Beside the headers that every page may read.
_EXPOSED = ("Retry-After", "X-Request-Id", HINT_STATUS)
# Those of a refusal that stay: the others describe its body, which is another.
_KEPT = ("access-control-allow-origin", "vary")


class CrossOriginMiddleware(CORSMiddleware):
    """Starlette's middleware, whose refusals are errors that name the flag.

    Preflights are answered before authentication, because browsers send them without the key.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        super().__init__(
            app,
            allow_origins=config.allowed_origins,
            allow_methods=config.allowed_methods,
            allow_headers=config.allowed_headers,
            allow_credentials=config.allow_credentials,
            expose_headers=_EXPOSED,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        origin = request_headers["origin"]
        if not self.is_allowed_origin(origin):
            reason = f"pages of {origin:.200} may not call this server; see --allowed-origins"
        else:
            # "Disallowed CORS method, headers"
            what = bytes(response.body).decode().removeprefix("Disallowed CORS ")
            reason = f"pages may not use this {what}; see --allowed-methods and --allowed-headers"
        headers = {name: value for name, value in response.headers.items() if name in _KEPT}
        return ApiError(400, reason, code="cors_refused", headers=headers).response()
