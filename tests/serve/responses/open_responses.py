"""What Open Responses requires of a response and of the events of its stream, as JSON Schemas.

Written after the specification of 2026-04-24 (openresponses.org): each field that it requires, with
its type. Fields beyond it are allowed, as there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}


def record(**fields: Schema) -> Schema:
    """Return the schema of an object that has all these fields."""
    return {"type": "object", "properties": fields, "required": list(fields)}


def tagged(kind: str, /, **fields: Schema) -> Schema:
    """Return the schema of an object whose ``type`` is ``kind``."""
    return record(type={"const": kind}, **fields)


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def one_of(*schemas: Schema) -> Schema:
    return {"oneOf": list(schemas)}


def list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


def enum(*values: str) -> Schema:
    return {"enum": list(values)}


_TOP_LOGPROB = {"token": STRING, "logprob": NUMBER, "bytes": list_of(INTEGER)}
_LOGPROBS = list_of(record(**_TOP_LOGPROB, top_logprobs=list_of(record(**_TOP_LOGPROB))))
_OUTPUT_TEXT = tagged("output_text", text=STRING, annotations=list_of(OBJECT))
_OUTPUT_TEXT["properties"]["logprobs"] = _LOGPROBS
_PART = one_of(
    _OUTPUT_TEXT,
    tagged("refusal", refusal=STRING),
    tagged("reasoning_text", text=STRING),
    tagged("summary_text", text=STRING),
)
_STATUS = enum("in_progress", "completed", "incomplete")
ITEM = one_of(
    tagged(
        "message",
        id=STRING,
        status=_STATUS,
        role=enum("user", "assistant", "system", "developer"),
        content=list_of(_PART),
    ),
    tagged(
        "function_call", id=STRING, call_id=STRING, name=STRING, arguments=STRING, status=_STATUS
    ),
    tagged("reasoning", id=STRING, summary=list_of(_PART)),
)
_TOOL = tagged(
    "function",
    name=STRING,
    description=or_null(STRING),
    parameters=or_null(OBJECT),
    strict=or_null(BOOLEAN),
)
_FORMAT = one_of(
    tagged("text"),
    tagged("json_object"),
    tagged("json_schema", name=STRING, description=or_null(STRING), schema={}, strict=BOOLEAN),
)
_USAGE = record(
    input_tokens=INTEGER,
    output_tokens=INTEGER,
    total_tokens=INTEGER,
    input_tokens_details=record(cached_tokens=INTEGER),
    output_tokens_details=record(reasoning_tokens=INTEGER),
)
RESPONSE = record(
    id=STRING,
    object={"const": "response"},
    created_at=INTEGER,
    completed_at=or_null(INTEGER),
    status=STRING,
    incomplete_details=or_null(record(reason=STRING)),
    model=STRING,
    previous_response_id=or_null(STRING),
    instructions=or_null(STRING),
    output=list_of(ITEM),
    error=or_null(record(code=STRING, message=STRING)),
    tools=list_of(_TOOL),
    tool_choice={"anyOf": [enum("none", "auto", "required"), tagged("function")]},
    truncation=enum("auto", "disabled"),
    parallel_tool_calls=BOOLEAN,
    text=record(format=_FORMAT),
    top_p=NUMBER,
    presence_penalty=NUMBER,
    frequency_penalty=NUMBER,
    top_logprobs=INTEGER,
    temperature=NUMBER,
    reasoning=or_null(record(effort=or_null(STRING), summary=or_null(STRING))),
    usage=or_null(_USAGE),
    max_output_tokens=or_null(INTEGER),
    max_tool_calls=or_null(INTEGER),
    store=BOOLEAN,
    background=BOOLEAN,
    service_tier=STRING,
    metadata={},
    safety_identifier=or_null(STRING),
    prompt_cache_key=or_null(STRING),
)

_OF_ITEM = {"output_index": INTEGER, "item": ITEM}
_OF_CALL = {"item_id": STRING, "output_index": INTEGER}
_OF_PART = {**_OF_CALL, "content_index": INTEGER}
EVENTS: Mapping[str, Mapping[str, Schema]] = {
    **{
        f"response.{status}": {"response": RESPONSE}
        for status in ("created", "queued", "in_progress", "completed", "failed", "incomplete")
    },
    "response.output_item.added": _OF_ITEM,
    "response.output_item.done": _OF_ITEM,
    "response.content_part.added": {**_OF_PART, "part": _PART},
    "response.content_part.done": {**_OF_PART, "part": _PART},
    "response.output_text.delta": {**_OF_PART, "delta": STRING, "logprobs": _LOGPROBS},
    "response.output_text.done": {**_OF_PART, "text": STRING, "logprobs": _LOGPROBS},
    "response.reasoning_text.delta": {**_OF_PART, "delta": STRING},
    "response.reasoning_text.done": {**_OF_PART, "text": STRING},
    "response.function_call_arguments.delta": {**_OF_CALL, "delta": STRING},
    "response.function_call_arguments.done": {**_OF_CALL, "arguments": STRING},
}


def check_response(response: Mapping[str, Any]) -> None:
    """Raise unless a response has every field, of its type."""
    Draft202012Validator(RESPONSE).validate(response)


def check_event(event: Mapping[str, Any]) -> None:
    """Raise unless an event is known and has every field, of its type."""
    schema = tagged(event["type"], sequence_number=INTEGER, **EVENTS[event["type"]])
    Draft202012Validator(schema).validate(event)
