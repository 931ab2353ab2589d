"""The fields of request bodies that ask for structured output, under the names of all servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.grammar.spec import StructuredOutputsParams

_Reader = Callable[[str, Any], StructuredOutputsParams | None]


def read_structured_outputs(fields: Mapping[str, Any]) -> StructuredOutputsParams | None:
    """Return what the output must match, from whichever field of a body asks for it.

    Args:
        fields: the body, or the part of it that may hold these fields.

    Raises:
        InvalidRequestError: a field is invalid, or two ask for something; the error names them.
    """
    asked = {
        name: params
        for name, read in _READERS.items()
        if fields.get(name) is not None and (params := read(name, fields[name])) is not None
    }
    if len(asked) > 1:
        raise InvalidRequestError(
            f"{' and '.join(asked)} each constrain the output; send one of them",
            list(asked)[1],
        )
    return next(iter(asked.values()), None)


def read_response_format(name: str, value: Any) -> StructuredOutputsParams | None:
    """Read OpenAI's field, or what a route that is translated to a chat has read of its own.

    llama.cpp, Together and OpenAI's Responses have ``schema`` without ``json_schema``.

    Raises:
        InvalidRequestError: it is invalid; the error has the ``name``.
    """
    if isinstance(value, StructuredOutputsParams):
        return value
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        if (schema := value.get("schema")) is not None:
            return StructuredOutputsParams(json=schema, param=name)
        return StructuredOutputsParams(json_object=True, param=name)
    if kind == "json_schema":
        wrapper = value.get("json_schema")
        schema = (wrapper if isinstance(wrapper, Mapping) else value).get("schema")
        if schema is None:
            field = "json_schema.schema" if name == "response_format" else "schema"
            raise InvalidRequestError(f"{name}.{field} is missing", name)
        return StructuredOutputsParams(json=schema, param=name)
    raise InvalidRequestError(
        f"{name} must be an object whose type is text, json_object or json_schema", name
    )


def _structured_outputs(name: str, value: Any) -> StructuredOutputsParams | None:
    if isinstance(value, Mapping):
        asks = any(one is not None and one is not False for one in value.values())
        return StructuredOutputsParams.of_mapping(value, name) if asks else None
    raise InvalidRequestError(f"{name} must be an object", name)


def _format(name: str, value: Any) -> StructuredOutputsParams | None:
    if value == "":
        return None
    if value == "json":
        return StructuredOutputsParams(json_object=True, param=name)
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f'{name} must be "json" or a JSON Schema', name)
    return StructuredOutputsParams(json=value, param=name)


def _reader_of(field: str) -> _Reader:
    return lambda name, value: StructuredOutputsParams.of_mapping({field: value}, name)


_READERS: Mapping[str, _Reader] = {
    "response_format": read_response_format,
    "structured_outputs": _structured_outputs,  # vLLM, as are the next four
    "guided_json": _reader_of("json"),
    "guided_regex": _reader_of("regex"),
    "guided_choice": _reader_of("choice"),
    "guided_grammar": _reader_of("grammar"),
    "json_schema": _reader_of("json"),  # SGLang, llama.cpp
    "regex": _reader_of("regex"),  # SGLang
    "ebnf": _reader_of("grammar"),  # SGLang
    "grammar": _reader_of("grammar"),  # llama.cpp
    "format": _format,  # Ollama
}
