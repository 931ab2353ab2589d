"""Request bodies: read up to a size limit, parsed strictly, validated against a schema."""

from __future__ import annotations

import math
import re
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, from_json

from kvflow_jax.serve.errors import ApiError

MAX_ERRORS_SHOWN = 3

# What is wrong with a value, in the words of JSON, by pydantic's type of error.
_COMPLAINTS = {
    "missing": " is missing",
    "dict_type": " must be an object",
    "list_type": " must be a list",
    "string_type": " must be a string",
    "int_type": " must be an integer",
    "float_type": " must be a number",
    "bool_type": " must be true or false",
}

# In a body whose numbers are all finite, matched by few.
_LARGE_NUMBER = re.compile(rb"[eE]\+?[0-9]{2}|[0-9]{300}")

Schema = TypeVar("Schema", bound=BaseModel)


async def parse_body(request: Request, schema: type[Schema], max_bytes: int) -> Schema:
    """Return the JSON body of a request as ``schema``.

    Raises:
        ApiError: 415 for a content type that is not JSON; 413 for more than ``max_bytes`` (the
            server buffers no more than that); 400 for a body that is not a JSON object in UTF-8
            or does not match the schema, naming the field.
    """
    return validate(await read_object(request, max_bytes), schema)


def validate(body: dict[str, Any], schema: type[Schema]) -> Schema:
    """Return a body as ``schema``; raise an ApiError (400) that names the field."""
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        raise _to_api_error(error, schema) from None


async def read_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """Return the body of a request, a JSON object. Raises the errors of ``parse_body``."""
    _check_content_type(request.headers.get("content-type"))
    return _parse_object(await _read(request, max_bytes))


def _check_content_type(value: str | None) -> None:
    """Refuse what a form of any web page can send without the browser asking the server first."""
    if value is None:
        return
    media_type = value.partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        raise ApiError(
            415,
            f"the content type is {media_type!r:.80}; send Content-Type: application/json",
            code="unsupported_media_type",
        )


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
    # Python would echo such a number as Infinity, which is no JSON.
    if _LARGE_NUMBER.search(body) and (path := _path_of_infinity(parsed)) is not None:
        raise ApiError(400, f"{path}: the number is out of range", param=path, code="invalid_value")
    return parsed


def _path_of_infinity(value: Any, path: str = "") -> str | None:
    """Return the path of an infinite number in a JSON value; None if there is none."""
    if isinstance(value, float):
        return path if math.isinf(value) else None
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, float | dict | list):
            at = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}" if path else key
            if (found := _path_of_infinity(item, at)) is not None:
                return found
    return None


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {max_bytes / 2**20:g} MiB, the limit set by --max-body-mib",
        code="body_too_large",
    )


def _to_api_error(error: ValidationError, schema: type[BaseModel]) -> ApiError:
    details = error.errors(include_url=False, include_context=False, include_input=False)
    complaints: dict[str, list[str]] = {}  # by path; a field of several types has one of each
    for detail in details:
        complaint = _COMPLAINTS.get(detail["type"], f": {detail['msg']}")
        complaints.setdefault(_path(detail, schema), []).append(complaint)
    shown = [
        path + " or ".join([first, *(other.removeprefix(" must be ") for other in others)])
        for path, (first, *others) in list(complaints.items())[:MAX_ERRORS_SHOWN]
    ]
    if len(complaints) > MAX_ERRORS_SHOWN:
        shown.append(f"and {len(complaints) - MAX_ERRORS_SHOWN} more")
    return ApiError(400, "; ".join(shown), param=_path(details[0], schema), code="invalid_value")


def _path(detail: ErrorDetails, schema: type[BaseModel]) -> str:
    field, *rest = detail["loc"]
    if _has_several_types(schema, field):
        # The type that did not match, such as ``list[any]``, is no part of the body.
        del rest[:1]
    path = str(field)
    for part in rest:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path


def _has_several_types(schema: type[BaseModel], field: object) -> bool:
    info = schema.model_fields.get(str(field))
    annotation = None if info is None else info.annotation
    if get_origin(annotation) is not UnionType:
        return False
    return len([one for one in get_args(annotation) if one is not NoneType]) > 1
