"""A tool as a client declares it, checked and in canonical form."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvflow_jax.errors import InvalidRequestError

MAX_TOOLS = 1024
MAX_TOOLS_BYTES = 1 << 20  # of all tools of a request, as JSON
MAX_DEPTH = 64  # of a tool's JSON
MAX_REFERENCED_KEYS = 1 << 16  # of the definitions that a tool's parameters name, each time anew

_REFERENCE = re.compile(r"#/(\$defs|definitions)/([^/~%]+)")
TOOL_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")

# In this order, because models were trained on it; other keys follow, sorted.
_FIRST_KEYS = ("type", "function", "name", "description", "parameters")
# Other fields, such as ``strict`` and ``cache_control``, are not for the model.
_FUNCTION_KEYS = ("name", "description", "parameters", "return")


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    Two declarations that differ only in the order of keys have equal definitions, so that the
    prompts that they are written into share their cached prefix.

    Attributes:
        definition: ``{"type": "function", "function": {...}}``, what chat templates get.
        schema: the JSON Schema of the arguments, as it was declared.
        parameters: the JSON Schema of each parameter, in the order of the declaration. One that is
            a reference to a definition of the tool's schema is this definition.
        is_strict: the client asks for arguments that conform to the schema.
    """

    name: str
    definition: Mapping[str, Any]
    schema: Mapping[str, Any]
    parameters: Mapping[str, Any]
    is_strict: bool = False

    @property
    def json(self) -> str:
        """The definition as one line of JSON."""
        return json.dumps(self.definition, ensure_ascii=False)


def read_tools(data: Any) -> tuple[Tool, ...]:
    """Read the ``tools`` of a request; null is none.

    Raises:
        InvalidRequestError: names the invalid tool, or the limit that the tools exceed.
    """
    if data is None:
        return ()
    if not isinstance(data, list):
        raise InvalidRequestError("tools must be a list", param="tools")
    if len(data) > MAX_TOOLS:
        raise InvalidRequestError(
            f"a request may have at most {MAX_TOOLS} tools, got {len(data)}", param="tools"
        )
    tools = tuple(_read_tool(f"tools[{i}]", tool) for i, tool in enumerate(data))
    num_bytes = sum(len(tool.json.encode(errors="replace")) for tool in tools)
    if num_bytes > MAX_TOOLS_BYTES:
        raise InvalidRequestError(
            f"the tools have {num_bytes} bytes of JSON, the limit is {MAX_TOOLS_BYTES}",
            param="tools",
        )
    _check_unique(tools)
    return tools


def is_deeper(value: Any, max_depth: int = MAX_DEPTH) -> bool:
    """True if a JSON value has more than ``max_depth`` levels."""
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return max_depth == 0 or any(is_deeper(item, max_depth - 1) for item in items)


def _read_tool(field: str, data: Any) -> Tool:
    kind = data.get("type", "function") if isinstance(data, dict) else None
    if kind != "function":
        raise InvalidRequestError(
            f"{field}.type must be 'function', got {kind!r:.80}", param=f"{field}.type"
        )
    function = data.get("function")
    if not isinstance(function, dict):
        raise InvalidRequestError(
            f"{field}.function must be an object; a tool is "
            '{"type": "function", "function": {"name": ..., "parameters": {...}}}',
            param=f"{field}.function",
        )
    field = f"{field}.function"
    name = function.get("name")
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{field}.name must be 1 to 128 letters, digits or any of _ . : / -, got {name!r:.80}",
            param=f"{field}.name",
        )
    for key, kinds in (("description", str), ("parameters", dict), ("strict", bool)):
        if function.get(key) is not None and not isinstance(function[key], kinds):
            raise InvalidRequestError(
                f"{field}.{key} must be {_KIND_NAMES[kinds]}", param=f"{field}.{key}"
            )
    kept = {key: function[key] for key in _FUNCTION_KEYS if function.get(key) is not None}
    if is_deeper(kept):
        raise InvalidRequestError(
            f"{field} is nested deeper than {MAX_DEPTH} levels", param=f"{field}.parameters"
        )
    definition = _canonical({"type": "function", "function": kept})
    # As from OpenAI, a function without a schema has no parameters.
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    parameters = _read_parameters(f"{field}.parameters", schema)
    return Tool(name, definition, schema, parameters, bool(function.get("strict")))


def _read_parameters(field: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of each parameter; a ``$ref`` is replaced by what it names."""
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {}
    num_keys = 0
    parameters = {}
    for name, parameter in properties.items():
        for _ in range(MAX_DEPTH):  # references may form a circle
            if (target := _referenced(parameter, schema)) is None:
                break
            num_keys += len(target) + len(parameter)
            if num_keys > MAX_REFERENCED_KEYS:
                raise InvalidRequestError(
                    f"{field} refers to definitions of more than {MAX_REFERENCED_KEYS} keys "
                    "together",
                    param=field,
                )
            parameter = target | {k: value for k, value in parameter.items() if k != "$ref"}
        parameters[name] = parameter
    return parameters


def _referenced(schema: Any, root: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the definition that a schema's ``$ref``, such as ``#/$defs/City``, names."""
    if not isinstance(schema, dict) or "$ref" not in schema:
        return None
    match = _REFERENCE.fullmatch(str(schema["$ref"]))
    definitions = root.get(match[1]) if match else None
    target = definitions.get(match[2]) if match and isinstance(definitions, dict) else None
    return target if isinstance(target, dict) else None


_KIND_NAMES: dict[type, str] = {str: "a string", dict: "an object", bool: "true or false"}


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        keys = [key for key in _FIRST_KEYS if key in value]
        keys += sorted(value.keys() - set(keys))
        return {key: _canonical(value[key]) for key in keys}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return value


def _check_unique(tools: Sequence[Tool]) -> None:
    seen: set[str] = set()
    for i, tool in enumerate(tools):
        if tool.name in seen:
            raise InvalidRequestError(
                f"two tools have the name {tool.name!r}", param=f"tools[{i}].function.name"
            )
        seen.add(tool.name)
