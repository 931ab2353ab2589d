"""Request bodies: read up to limits, parsed strictly, validated against a schema."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from kvflow_jax.serve.body_memory import BodyMemory, Reservation
from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.http_middleware import until_end
from kvflow_jax.serve.json_structure import Limits, has_few_values, scan
from kvflow_jax.serve.large_json import parse, parse_in_slices
from kvflow_jax.serve.tenant_threads import TenantThreads

MAX_ERRORS_SHOWN = 3
MAX_ERRORS_READ = 100
# Of a body that is read on the event loop, which takes up to 20 ms.
MAX_INLINE_BYTES, INLINE_LIMITS = 1 << 18, Limits(1 << 11, 1 << 13)
BODIES_AT_ONCE = 16  # of the largest size, of all unfinished requests
# The largest step graph: 16,384 edges of four fields, and 4,096 nodes. A chat has some ten objects
# for each message with its tool calls.
MAX_CONTAINERS = 1 << 15
MAX_VALUES = 1 << 17  # beside the token ids of prompts
PROMPTS_OF_IDS = 4  # whole contexts of token ids in one body

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

Read = TypeVar("Read")
Schema = TypeVar("Schema", bound=BaseModel)


class BodyReader:
    """Reads the bodies of requests, within limits of time and memory.

    A large body is parsed and read on a thread, one at a time and in slices: from_json holds
    the GIL, so that two of them at a time would halve the event loop's share of it. Tenants take
    turns.

    Args:
        max_bytes: of one body.
        max_model_len: the context in tokens, once there is one; prompts may be lists of token ids.
        on_refused: see ``BodyMemory``.
    """

    def __init__(
        self,
        max_bytes: int,
        max_model_len: Callable[[], int],
        on_refused: Callable[[str], int] = lambda tenant: 1,
    ) -> None:
        self._max_bytes, self._max_model_len = max_bytes, max_model_len
        self.memory = BodyMemory(BODIES_AT_ONCE * max_bytes, on_refused)
        self._thread = TenantThreads(1, "request-body")

    async def parse(self, request: Request, tenant: str, schema: type[Schema]) -> Schema:
        """Return the JSON body of a tenant's request as ``schema``.

        Raises:
            ApiError: 415 for a content type that is not JSON; 413 for more than ``max_bytes`` (the
                server buffers no more than that) or more values than the limits; 429 or 503 while
                the bodies of unfinished requests take all the memory for bodies; 400 for a body
                that is not a JSON object in UTF-8 or does not match the schema, naming the field.
        """
        return await self.read(request, tenant, lambda body: validate(body, schema))

    async def read(
        self, request: Request, tenant: str, read: Callable[[dict[str, Any]], Read]
    ) -> Read:
        """Return ``read(body)`` for a body, which is a JSON object. Raises as ``parse``.

        Args:
            read: reads and checks all of the body; called on the thread for a large one.
        """

        def on_mended() -> None:
            request.state.has_lone_surrogates = True

        limits = Limits(MAX_CONTAINERS, MAX_VALUES + PROMPTS_OF_IDS * self._max_model_len())
        _check_content_type(request.headers.get("content-type"))
        reservation = until_end(request).enter_context(self.memory.reservation(tenant))
        body = await self._receive(request, reservation)
        if len(body) > MAX_INLINE_BYTES or not has_few_values(body, limits):
            return await self._thread.run(
                tenant, lambda: read(_as_object(_parse_large(body, limits, on_mended)))
            )
        if not has_few_values(body, INLINE_LIMITS):
            return await self._thread.run(tenant, lambda: read(_as_object(_parse(body, on_mended))))
        return read(_as_object(_parse(body, on_mended)))

    def close(self) -> None:
        self._thread.close()

    async def _receive(self, request: Request, reservation: Reservation) -> bytearray:
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise _too_large(self._max_bytes)
        body = bytearray()
        # A chunked body declares no length.
        async for chunk in request.stream():
            if len(body) + len(chunk) > self._max_bytes:
                raise _too_large(self._max_bytes)
            reservation.grow(len(chunk))
            body += chunk
        return body


def has_lone_surrogates(request: Request) -> bool:
    """Return whether some of a body's text was read as U+FFFD, see ``large_json.parse``."""
    return getattr(request.state, "has_lone_surrogates", False)


def validate(body: dict[str, Any], schema: type[Schema]) -> Schema:
    """Return a body as ``schema``; raise an ApiError (400) that names the field."""
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        if error.error_count() <= MAX_ERRORS_READ:
            raise _to_api_error(error, schema) from None
    # Each error is an object of its own: those of a part of the body are enough.
    part = {name: _beginning(value) for name, value in body.items()}
    if part != body:
        validate(part, schema)
    raise ApiError(400, f"more than {MAX_ERRORS_READ} values are invalid", code="invalid_value")


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


def _parse(body: bytearray, on_mended: Callable[[], object]) -> Any:
    try:
        return parse(bytes(body), on_mended)
    except ValueError as error:
        raise _not_json(str(error)) from None


def _parse_large(body: bytearray, limits: Limits, on_mended: Callable[[], object]) -> Any:
    structure = scan(body, limits)
    try:
        return parse_in_slices(body, structure, on_mended)
    except ValueError as error:
        # The position is one within a slice.
        raise _not_json(str(error).partition(" at line ")[0]) from None


def _as_object(parsed: Any) -> dict[str, Any]:
    if not isinstance(parsed, dict):
        raise ApiError(400, "the body must be a JSON object")
    # Python would echo such a number as Infinity, which is no JSON.
    if (path := _path_of_infinity(parsed)) is not None:
        raise ApiError(400, f"{path}: the number is out of range", param=path, code="invalid_value")
    return parsed


def _path_of_infinity(value: dict[str, Any] | list[Any], path: str = "") -> str | None:
    """Return the path of an infinite number in a JSON value; None if there is none."""
    items = value.values() if isinstance(value, dict) else value
    # Without a step of Python for each number.
    may_be_here = math.inf in items or -math.inf in items
    if not may_be_here and not any(isinstance(item, dict | list) for item in items):
        return None
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if not isinstance(item, float | dict | list):
            continue
        at = f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}" if path else key
        if isinstance(item, float):
            if math.isinf(item):
                return at
        elif (found := _path_of_infinity(item, at)) is not None:
            return found
    return None


def _beginning(value: Any) -> Any:
    """Return the first items of a list or dict."""
    if isinstance(value, list):
        return value[:MAX_ERRORS_READ]
    if isinstance(value, dict):
        return dict(islice(value.items(), MAX_ERRORS_READ))
    return value


def _not_json(why: str) -> ApiError:
    return ApiError(400, f"the body is not valid JSON: {why}", code="invalid_json")


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
