"""``messages`` of a chat, as chat templates expect them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.reasoning.history import FIELDS as REASONING_FIELDS
from kvflow_jax.serve.json_structure import Limits, check_texts
from kvflow_jax.serve.large_json import parse
from kvflow_jax.serve.request_body import MAX_CONTAINERS, MAX_VALUES
from kvflow_jax.serve.schemas import ChatRequest
from kvflow_jax.tools.tool import is_deeper

# Any name, as in vLLM: a template may know roles of its own, and refuses those that it does not.
_ROLE = re.compile(r"[\w.-]{1,64}")

# Of the JSON in strings of the body, which its own limits do not count.
ARGUMENT_LIMITS = Limits(MAX_CONTAINERS, MAX_VALUES)

# Agents pass on parts of the Responses API, and what an assistant refused to say.
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
# What an assistant thought, in its content as some servers write it, with the key of the text; the
# last is encrypted.
_THINKING_PARTS = {"thinking": "thinking", "reasoning": "text", "redacted_thinking": ""}

# Of messages and their parts: what is before it is the same in all calls of the agent. Anthropic's
# name, which OpenRouter, LiteLLM and DashScope read in chats, and those of AI SDK's providers.
CACHE_MARKS = ("cache_control", "cacheControl", "cache_point")

_MISSING = object()


def _ignore() -> None:
    pass


def read_messages(
    body: ChatRequest, on_mended: Callable[[], object] = _ignore
) -> list[dict[str, Any]]:
    """Return messages as chat templates expect them: text contents, ``developer`` as ``system``.

    Args:
        on_mended: called if there is a lone surrogate in the arguments of a call.

    Raises:
        InvalidRequestError: names the invalid message and what is accepted.
        ApiError: 413, the arguments of calls have too many values.
    """
    check_texts(list(_arguments_of(body.messages)), ARGUMENT_LIMITS)
    return [
        _read_message(f"messages[{i}]", message, on_mended)
        for i, message in enumerate(body.messages)
    ]


def read_fixed_messages(body: ChatRequest) -> list[dict[str, Any]]:
    """Return the messages up to the last mark of the system messages that a chat begins with.

    They are what an agent's calls share: marks of later messages move with each turn. Empty if
    there is no mark.

    Args:
        body: of which ``read_messages`` has read the messages.
    """
    fixed: list[dict[str, Any]] = []
    marked: list[dict[str, Any]] = []
    for i, message in enumerate(body.messages):
        if message.get("role") not in ("system", "developer"):
            break
        content = message.get("content")
        parts = content if isinstance(content, list) else [content]
        ends = [n for n, part in enumerate(parts, 1) if _is_marked(part)]
        end = len(parts) if _is_marked(message) else max(ends, default=0)
        if end:
            cut = parts[:end] if isinstance(content, list) else content
            marked = [*fixed, _read_message(f"messages[{i}]", {**message, "content": cut})]
        fixed.append(_read_message(f"messages[{i}]", message))
    return marked


def _is_marked(part: Any) -> bool:
    return isinstance(part, dict) and any(part.get(name) for name in CACHE_MARKS)


def texts_of(value: Any) -> Iterator[str]:
    """Yield all texts in a JSON value, and a character for every other thing in it.

    They bound what a template may write of the value, with whichever of its fields.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from texts_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_of(item)
    else:
        yield "0"


def _arguments_of(messages: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield the JSON texts that are the arguments of calls."""
    for message in messages:
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            function = call.get("function") if isinstance(call, dict) else None
            if isinstance(function, dict) and isinstance(function.get("arguments"), str):
                yield function["arguments"]


def _read_message(
    field: str, message: dict[str, Any], on_mended: Callable[[], object] = _ignore
) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise InvalidRequestError(
            f"{field}.role must be system, developer, user, assistant, tool, or a name that the "
            f"model's chat template knows; got {role!r:.80}",
            param=f"{field}.role",
        )
    read = {
        name: value
        for name, value in message.items()
        if value is not None and name not in CACHE_MARKS
    }
    # Templates lack the developer role, OpenAI's successor of the system role.
    read["role"] = "system" if role == "developer" else role
    # A message that consists of tool calls only has no content; nor has the result of some tools.
    content = message.get("content", "" if role in ("assistant", "tool") else _MISSING)
    if role == "assistant" and isinstance(content, list):
        content, thinking = _without_thinking(content)
        if thinking and not any(name in read for name in REASONING_FIELDS):
            read[REASONING_FIELDS[0]] = thinking
    read["content"] = _read_content(f"{field}.content", content)
    for name in REASONING_FIELDS:
        if not isinstance(read.get(name, ""), str):
            raise InvalidRequestError(f"{field}.{name} must be a string", param=f"{field}.{name}")
    # Some templates count the calls of every message that has the field, even of an empty list,
    # which many clients send.
    if calls := read.pop("tool_calls", None):
        read["tool_calls"] = _read_tool_calls(f"{field}.tool_calls", calls, on_mended)
    return read


def _without_thinking(parts: list[Any]) -> tuple[list[Any], str]:
    """Return the parts of an assistant's content that are no thinking, and the thinking."""
    kept, thoughts = [], []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in _THINKING_PARTS:
            kept.append(part)
        elif isinstance(thought := part.get(_THINKING_PARTS[kind]), str):
            thoughts.append(thought)
    return kept, "\n".join(thoughts)


def _read_content(field: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise InvalidRequestError(
            f'{field} must be a string or a list of parts like {{"type": "text", "text": "..."}}',
            param=field,
        )
    texts = []
    for i, part in enumerate(content):
        if isinstance(part, str):  # as vLLM's and Together's clients may
            texts.append(part)
            continue
        is_object = isinstance(part, dict)
        kind = part.get("type", "text" if "text" in part else None) if is_object else None
        if kind not in _TEXT_PARTS:
            raise InvalidRequestError(
                f"{field}[{i}] has type {kind!r}; only parts of type 'text' are supported",
                param=f"{field}[{i}]",
            )
        key = "refusal" if kind == "refusal" else "text"
        if not isinstance(part.get(key), str):
            raise InvalidRequestError(
                f"{field}[{i}].{key} must be a string", param=f"{field}[{i}].{key}"
            )
        texts.append(part[key])
    # As vLLM does for templates that expect strings.
    return "\n".join(texts)


def _read_tool_calls(
    field: str, calls: Any, on_mended: Callable[[], object]
) -> list[dict[str, Any]]:
    """Parse the ``arguments``, which OpenAI sends as JSON text: templates write JSON themselves."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise InvalidRequestError(f"{field} must be a list of tool calls", param=field)
    read = []
    for i, call in enumerate(calls):
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequestError(
                f"{field}[{i}].function must be an object with a name",
                param=f"{field}[{i}].function",
            )
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            function = {**function, "arguments": _parse_arguments(arguments, on_mended)}
        elif arguments is None or (isinstance(arguments, dict) and not is_deeper(arguments)):
            function = {**function, "arguments": arguments or {}}
        else:
            raise InvalidRequestError(
                f"{field}[{i}].function.arguments must be a string of JSON",
                param=f"{field}[{i}].function.arguments",
            )
        read.append({**call, "function": function})
    return read


def _parse_arguments(arguments: str, on_mended: Callable[[], object]) -> Any:
    try:
        parsed = parse(arguments.encode(), on_mended)
    except ValueError:
        # Invalid JSON that a model wrote in an earlier turn is passed on unchanged, as is JSON so
        # deep that templates could not write it.
        return arguments
    is_object = isinstance(parsed, dict) and not is_deeper(parsed)
    return parsed if is_object else arguments
