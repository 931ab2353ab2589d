"""``system`` and ``messages`` of the Messages API as messages of the chat route."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kvflow_jax.errors import InvalidRequestError

ROLES = ("user", "assistant", "system")

# Traces of tools that run on Anthropic's servers, thinking that only its models can read, and
# marks of its own. They say nothing to another model.
_SKIPPED = ("redacted_thinking", "server_tool_use", "mcp_tool_use", "container_upload")
_SKIPPED_RESULT = "_tool_result"  # web_search_tool_result, mcp_tool_result, ...
_MARK = "cache_control"


def read_messages(
    system: str | Sequence[dict[str, Any]] | None, messages: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the messages of a body: its system text, then its messages, in their order.

    Only texts, calls and results are kept, and the marks of the system text, which the chat route
    reads.

    Raises:
        InvalidRequestError: names the invalid block.
    """
    system_parts = _read_system(system)
    read: list[dict[str, Any]] = []
    if system_parts:
        read.append({"role": "system", "content": system_parts})
    for i, message in enumerate(messages):
        field, role = f"messages[{i}]", message.get("role")
        if role == "assistant":
            read.append(_read_assistant(f"{field}.content", message.get("content")))
        elif role == "user":
            read += _read_user(f"{field}.content", message.get("content"))
        elif role == "system":
            texts = _read_texts(f"{field}.content", message.get("content"))
            read.append({"role": role, "content": _join(texts)})
        else:
            raise InvalidRequestError(
                f"{field}.role must be one of {', '.join(ROLES)}; got {role!r:.80}",
                param=f"{field}.role",
            )
    # Anthropic's API lets the last message of the assistant be empty: it begins the answer.
    if len(read) > 1 and read[-1] == {"role": "assistant", "content": None}:
        read.pop()
    return read


def _read_system(system: str | Sequence[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the texts of the system field as content parts of a chat, with their marks."""
    read = [
        (_read_text(name, block), block.get(_MARK))
        for name, block in _blocks("system", system or [])
    ]
    return [{"type": "text", "text": text, _MARK: mark} for text, mark in read if text.strip()]


def _read_user(field: str, content: Any) -> list[dict[str, Any]]:
    """Return the messages of a user's turn: each result of a tool is one, and texts between."""
    read: list[dict[str, Any]] = []
    texts: list[str] = []
    for name, block in _blocks(field, content):
        if block["type"] == "tool_result":
            if texts:
                read.append({"role": "user", "content": _join(texts)})
                texts = []
            read.append(_read_result(name, block))
        else:
            texts.append(_read_text(name, block))
    if texts or not read:
        read.append({"role": "user", "content": _join(texts)})
    return read


def _read_assistant(field: str, content: Any) -> dict[str, Any]:
    texts, thinking, calls = [], [], []
    for name, block in _blocks(field, content):
        if block["type"] == "thinking":
            if isinstance(block.get("thinking"), str):
                thinking.append(block["thinking"])
        elif block["type"] == "tool_use":
            calls.append(_read_call(name, block))
        else:
            texts.append(_read_text(name, block))
    read: dict[str, Any] = {"role": "assistant", "content": _join(texts) or None}
    if any(thinking):
        read["reasoning_content"] = _join(thinking)
    if calls:
        read["tool_calls"] = calls
    return read


def _read_call(field: str, block: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(block.get("name"), str):
        raise InvalidRequestError(f"{field}.name must be a string", f"{field}.name")
    arguments = block.get("input")
    if not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    function = {"name": block["name"], "arguments": arguments}
    return {"id": block.get("id"), "type": "function", "function": function}


def _read_result(field: str, block: dict[str, Any]) -> dict[str, Any]:
    call_id = block.get("tool_use_id")
    if not isinstance(call_id, str):
        raise InvalidRequestError(f"{field}.tool_use_id must be a string", f"{field}.tool_use_id")
    content = block.get("content")
    text = "" if content is None else _join(_read_texts(f"{field}.content", content))
    # Templates know no failed results, so the text must say it.
    if block.get("is_error") is True and not text.lower().startswith("error"):
        text = f"Error: {text}" if text else "Error"
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def _read_texts(field: str, content: Any) -> list[str]:
    return [_read_text(name, block) for name, block in _blocks(field, content)]


def _read_text(field: str, block: dict[str, Any]) -> str:
    if block["type"] != "text":
        raise InvalidRequestError(
            f"{field} has the type {block['type']!r:.80}, which is not supported here; send text",
            param=field,
        )
    if not isinstance(block.get("text"), str):
        raise InvalidRequestError(f"{field}.text must be a string", f"{field}.text")
    return str(block["text"])


def _blocks(field: str, content: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return the blocks of a content with their names, without those that are skipped."""
    if isinstance(content, str):
        return [(field, {"type": "text", "text": content})]
    if not isinstance(content, Sequence):
        raise InvalidRequestError(f"{field} must be a text or a list of blocks", field)
    blocks = []
    for i, block in enumerate(content):
        name = f"{field}[{i}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if not isinstance(kind, str):
            raise InvalidRequestError(f"{name} must be an object with a type", name)
        if kind not in _SKIPPED and not kind.endswith(_SKIPPED_RESULT):
            blocks.append((name, block))
    return blocks


def _join(texts: Sequence[str]) -> str:
    # As the chat route joins parts, but without blank ones.
    return "\n".join(text for text in texts if text.strip()) if len(texts) > 1 else "".join(texts)
