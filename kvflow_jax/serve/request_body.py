"""Request bodies: read up to a size limit, parsed strictly, validated against a schema."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from kvflow_jax.serve.errors import ApiError

MAX_ERRORS_SHOWN = 3

Schema = TypeVar("Schema", bound=BaseModel)


async def parse_body(request: Request, schema: type[Schema], max_bytes: int) -> Schema:
    """Return the JSON body of a request as ``schema``, whatever its content type.

    Raises:
        ApiError: 413 for more than ``max_bytes`` (the server buffers no more than that); 400 for
            a body that is not a JSON object in UTF-8 or does not match the schema, naming the
            field.
    """
    return validate(await read_object(request, max_bytes), schema)


def validate(body: dict[str, Any], schema: type[Schema]) -> Schema:
    """Return a body as ``schema``; raise an ApiError (400) that names the field."""
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        raise _to_api_error(error) from None


async def read_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """Return the body of a request, a JSON object. Raises the errors of ``parse_body``."""
    return _parse_object(await _read(request, max_bytes))


async def _read(request: Request, max_bytes: int) -> bytearray:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    # A chunked body declares no length.
    async for chunk in request.stream():
        if len(body) + len(chunk) > max_bytes:
            raise _too_large(max_bytes)
        body += chunk
    return body


def _parse_object(body: bytearray) -> dict[str, Any]:
    try:
        # Limits the depth, and rejects NaN, Infinity, invalid UTF-8 and lone surrogates.
        parsed = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(parsed, dict):
        raise ApiError(400, "the body must be a JSON object")
    return parsed


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {max_bytes / 2**20:g} MiB, the limit set by --max-body-mib",
        code="body_too_large",
    )


def _to_api_error(error: ValidationError) -> ApiError:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [f"{_path(d)}: {d['msg']}" for d in details[:MAX_ERRORS_SHOWN]]
    if len(details) > MAX_ERRORS_SHOWN:
        shown.append(f"and {len(details) - MAX_ERRORS_SHOWN} more")
    return ApiError(400, "; ".join(shown), param=_path(details[0]), code="invalid_value")


def _path(detail: ErrorDetails) -> str:
    path = ""
    for part in detail["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path
