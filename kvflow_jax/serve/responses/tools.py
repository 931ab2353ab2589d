"""Tools of the Responses API as the chat route takes them. Only functions are supported."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvflow_jax.errors import InvalidRequestError

logger = logging.getLogger("kvflow_jax.serve")


@dataclass
class ToolNames:
    """The names under which the model knows tools, and those under which clients sent them.

    A tool of a namespace has a flat name for the model.
    """

    flat: dict[tuple[str | None, str], str] = field(default_factory=dict)
    sent: dict[str, tuple[str | None, str]] = field(default_factory=dict)

    def add(self, namespace: str | None, name: str) -> str:
        """Return the flat name of a tool."""
        flat = name if namespace is None else _flat_name(namespace, name)
        self.flat[namespace, name] = flat
        self.sent[flat] = (namespace, name)
        return flat

    def of_call(self, namespace: str | None, name: str) -> str:
        """Return the flat name in a call of the input, whose tool may be gone."""
        default = name if namespace is None else _flat_name(namespace, name)
        return self.flat.get((namespace, name), default)

    def sent_fields(self, flat: str) -> dict[str, str]:
        """Return ``name``, and ``namespace`` if it was sent with one, for a call of the model."""
        namespace, name = self.sent.get(flat, (None, flat))
        return {"name": name} if namespace is None else {"name": name, "namespace": namespace}


def read_tools(tools: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], ToolNames]:
    """Return the functions among ``tools`` as tools of the chat route, and their names.

    Tools of other types run on OpenAI's servers or are of a client alone; they are skipped with
    one line in the log, because clients send them to every server.

    Raises:
        InvalidRequestError: names the invalid tool.
    """
    names = ToolNames()
    read: list[dict[str, Any]] = []
    skipped: set[str] = set()
    for i, tool in enumerate(tools):
        kind = tool.get("type")
        if kind == "function":
            read.append(_read_function(f"tools[{i}]", tool, None, names))
        elif kind == "namespace":
            read += _read_namespace(f"tools[{i}]", tool, names, skipped)
        elif isinstance(kind, str):
            skipped.add(kind)
        else:
            raise InvalidRequestError(f"tools[{i}].type must be a string", param=f"tools[{i}].type")
    if skipped:
        logger.info("skipped tools that are no functions: %s", ", ".join(sorted(skipped))[:200])
    return read, names


def read_tool_choice(choice: str | Mapping[str, Any] | None, names: ToolNames) -> Any:
    """Return ``tool_choice`` as the chat route takes it.

    Raises:
        InvalidRequestError: it chooses a tool that is no function.
    """
    if choice is None or isinstance(choice, str):
        return choice
    name, namespace = choice.get("name"), choice.get("namespace")
    if choice.get("type") != "function" or not isinstance(name, str):
        raise InvalidRequestError(
            "tool_choice must be 'auto', 'none', 'required' or "
            '{"type": "function", "name": "..."}',
            param="tool_choice",
        )
    flat = names.of_call(namespace if isinstance(namespace, str) else None, name)
    return {"type": "function", "function": {"name": flat}}


def _read_namespace(
    where: str, namespace: Mapping[str, Any], names: ToolNames, skipped: set[str]
) -> list[dict[str, Any]]:
    name, children = namespace.get("name"), namespace.get("tools") or []
    if not isinstance(name, str) or not isinstance(children, list):
        raise InvalidRequestError(
            f"{where} must have a name and a list of tools", param=f"{where}.name"
        )
    read = []
    for i, child in enumerate(children):
        kind = child.get("type") if isinstance(child, dict) else None
        if kind == "function":
            read.append(_read_function(f"{where}.tools[{i}]", child, name, names))
        else:
            skipped.add(f"{name}.{kind}")
    return read


def _read_function(
    where: str, tool: Mapping[str, Any], namespace: str | None, names: ToolNames
) -> dict[str, Any]:
    name = tool.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidRequestError(
            f"{where}.name must be a string; a tool is "
            '{"type": "function", "name": ..., "parameters": {...}}',
            param=f"{where}.name",
        )
    function = {
        key: tool[key]
        for key in ("description", "parameters", "strict")
        if tool.get(key) is not None
    }
    return {"type": "function", "function": {"name": names.add(namespace, name), **function}}


def _flat_name(namespace: str, name: str) -> str:
    return f"{namespace}{name}" if namespace.endswith("_") else f"{namespace}__{name}"
