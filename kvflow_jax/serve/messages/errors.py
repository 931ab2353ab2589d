"""Errors as Anthropic's ``{"type": "error", "error": {type, message}}``."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from kvflow_jax.errors import ContextLengthError
from kvflow_jax.serve.errors import ApiError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    # Anthropic's own status of an overloaded server is 529; its clients retry both.
    503: "overloaded_error",
}


def error_body(error: ApiError) -> dict[str, Any]:
    kind = _TYPES.get(error.status)
    if kind is None:
        kind = "api_error" if error.status >= 500 else "invalid_request_error"
    return {"type": "error", "error": {"type": kind, "message": error.message}}


def error_response(error: ApiError) -> JSONResponse:
    return JSONResponse(error_body(error), error.status, error.headers)


def prompt_too_long(error: ContextLengthError) -> ApiError:
    """Return the error in the words by which Anthropic's clients know that they must compact."""
    return ApiError(
        400,
        f"prompt is too long: {error.num_tokens} tokens > {error.max_tokens} maximum",
        code=error.code,
    )
