"""``input`` of the Responses API as messages of the chat route."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.serve.responses.tools import ToolNames

ROLES = ("user", "assistant", "system", "developer")

_TEXT_PARTS = ("input_text", "output_text", "text", "refusal")
# Items that say nothing to a model: traces of tools that run on OpenAI's servers.
_SKIPPED = frozenset(
    {
        "code_interpreter_call",
        "compaction",
        "file_search_call",
        "image_generation_call",
        "item_reference",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "web_search_call",
    }
)
_OUTPUTS = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")


def read_input(
    instructions: str | None, data: str | Sequence[Any] | None, names: ToolNames
) -> list[dict[str, Any]]:
    """Return the messages of a body: its instructions, then its input.

    Reasoning, text and calls of one turn of the assistant become one message, as the model wrote
    them.

    Raises:
        InvalidRequestError: names the invalid item.
    """
    messages = [] if instructions is None else [{"role": "system", "content": instructions}]
    if isinstance(data, str):
        return [*messages, {"role": "user", "content": data}]
    if not data:
        raise InvalidRequestError("input must be a text or a list of items", param="input")
    turn = _AssistantTurn()
    for i, item in enumerate(data):
        field = f"input[{i}]"
        if not isinstance(item, dict):
            raise InvalidRequestError(f"{field} must be an object", param=field)
        kind = item.get("type") or "message"
        if not isinstance(kind, str):
            raise InvalidRequestError(f"{field}.type must be a string", param=f"{field}.type")
        role = item.get("role")
        if kind == "reasoning":
            turn.add_reasoning(_reasoning_text(item))
        elif kind == "message" and role == "assistant":
            turn.add_text(_read_text(f"{field}.content", item.get("content")))
        elif kind in ("function_call", "custom_tool_call"):
            turn.add_call(_read_call(field, item, names))
        elif kind in _SKIPPED:
            continue
        else:
            messages += turn.take()
            messages.append(_read_other(field, item, kind))
    messages += turn.take()
    if not messages:
        raise InvalidRequestError("input must have a message", param="input")
    return messages


class _AssistantTurn:
    """Collects the items of one turn of the assistant."""

    def __init__(self) -> None:
        self._reasoning: list[str] = []
        self._texts: list[str] = []
        self._calls: list[dict[str, Any]] = []

    def add_reasoning(self, text: str) -> None:
        self._reasoning.append(text)

    def add_text(self, text: str) -> None:
        self._texts.append(text)

    def add_call(self, call: dict[str, Any]) -> None:
        self._calls.append(call)

    def take(self) -> list[dict[str, Any]]:
        """Return the message, if there is one, and begin a new turn."""
        reasoning, texts, calls = "".join(self._reasoning), self._texts, self._calls
        self._reasoning, self._texts, self._calls = [], [], []
        # Reasoning alone, its answer lost, is no turn.
        if not texts and not calls:
            return []
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "\n".join(texts) if texts else None,
        }
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        return [message]


def _read_other(field: str, item: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the message of an item that is not of the assistant."""
    if kind in _OUTPUTS:
        call_id = item.get("call_id")
        if not isinstance(call_id, str):
            raise InvalidRequestError(f"{field}.call_id must be a string", f"{field}.call_id")
        output = _read_text(f"{field}.output", item.get("output"))
        return {"role": "tool", "tool_call_id": call_id, "content": output}
    if kind != "message":
        raise InvalidRequestError(
            f"{field} has the type {kind!r:.80}, which is not supported; supported are message, "
            "function_call, function_call_output and reasoning",
            param=f"{field}.type",
        )
    role = item.get("role")
    if role not in ROLES:
        raise InvalidRequestError(
            f"{field}.role must be one of {', '.join(ROLES)}; got {role!r:.80}", f"{field}.role"
        )
    return {"role": role, "content": _read_text(f"{field}.content", item.get("content"))}


def _read_call(field: str, item: dict[str, Any], names: ToolNames) -> dict[str, Any]:
    name, namespace = item.get("name"), item.get("namespace")
    if not isinstance(name, str):
        raise InvalidRequestError(f"{field}.name must be a string", f"{field}.name")
    # A custom tool takes any text.
    arguments = item.get("arguments", item.get("input", ""))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    flat = names.of_call(namespace if isinstance(namespace, str) else None, name)
    function = {"name": flat, "arguments": arguments}
    return {"id": item.get("call_id"), "type": "function", "function": function}


def _read_text(field: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequestError(f"{field} must be a text or a list of parts", field)
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXT_PARTS:
            raise InvalidRequestError(
                f"{field}[{i}] has the type {kind!r:.80}; only parts of type 'input_text' and "
                "'output_text' are supported",
                param=f"{field}[{i}]",
            )
        text = part.get("refusal" if kind == "refusal" else "text")
        if not isinstance(text, str):
            raise InvalidRequestError(f"{field}[{i}].text must be a string", f"{field}[{i}].text")
        texts.append(text)
    # As the chat route joins parts.
    return "\n".join(texts)


def _reasoning_text(item: dict[str, Any]) -> str:
    """Return the text of a reasoning item, else its summary; one that is encrypted has none."""
    for name in ("content", "summary"):
        parts = item.get(name)
        texts = [
            part["text"]
            for part in (parts if isinstance(parts, list) else [])
            if isinstance(part, dict) and isinstance(part.get("text"), str)
        ]
        if texts:
            return "\n".join(texts)
    return ""
