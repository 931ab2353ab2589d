"""Calls written as JSON: ``{"name": ..., "arguments": {...}}``, streamed as they are read."""

from __future__ import annotations

import json
from collections.abc import Callable

from kvflow_jax.tools.call_events import EventWriter
from kvflow_jax.tools.text_source import Reading, TextSource, discard
from kvflow_jax.tools.tool import TOOL_NAME

_ARGUMENTS_KEYS = ("arguments", "parameters")
_SPACE_AND_LETTERS = " \t\r\nabcdefghijklmnopqrstuvwxyz"
_OUTSIDE_STRINGS = frozenset(_SPACE_AND_LETTERS + "E+-.,:0123456789")
_SCALAR = frozenset("abcdefghijklmnopqrstuvwxyzE+-.0123456789")

Accepts = Callable[[str], bool]


def is_tool_name(name: str) -> bool:
    """True if a tool may have this name. Models also call tools that were not declared."""
    return TOOL_NAME.fullmatch(name) is not None


def read_json_call(source: TextSource, out: EventWriter, accepts: Accepts) -> Reading[bool]:
    """Read one call; return False if the text is none, or ends before its name.

    The call begins as soon as its name is known, which removes the source's mark. Its arguments
    are passed on unchanged, valid or not. A call that is broken behind its name stays a call.
    """
    call = _JsonCall(source, out, accepts)
    yield from _read_members(source, call)
    if call.is_complete:
        out.end()
    return call.has_begun


def read_json_calls(source: TextSource, out: EventWriter, accepts: Accepts) -> Reading[bool]:
    """Read a list of calls, or one without brackets; return False if no call was found."""
    if not (yield from source.take("[")):
        return (yield from read_json_call(source, out, accepts))
    num_before = out.num_calls
    while True:
        yield from source.skip_space()
        if (yield from source.take("]")) or not (yield from read_json_call(source, out, accepts)):
            return out.num_calls > num_before
        yield from source.skip_space()
        yield from source.take(",")


def pass_json_value(source: TextSource, emit: Callable[[str], None]) -> Reading[bool]:
    """Emit one JSON value as it is written; return False if it is broken or ends too early."""
    first = yield from source.peek()
    if not first or first not in '{["':
        scalar = yield from source.take_while(_SCALAR.__contains__, max_chars=1024)
        emit(scalar)
        return bool(scalar)
    depth, is_in_string, is_escaped = 0, False, False
    while text := (yield from source.available()):
        for i, char in enumerate(text):
            if is_in_string:
                is_in_string = is_escaped or char != '"'
                is_escaped = char == "\\" and not is_escaped
            elif char == '"':
                is_in_string = True
            elif char in "{[":
                depth += 1
            elif char in "}]":
                depth -= 1
            elif char not in _OUTSIDE_STRINGS:
                emit(text[:i])
                source.skip(i)
                return False
            if not depth and not is_in_string:
                emit(text[: i + 1])
                source.skip(i + 1)
                return True
        emit(text)
        source.skip(len(text))
    return False


def to_json(value: object) -> str:
    """Return a value as JSON that can be encoded as UTF-8.

    Raises:
        ValueError, TypeError, RecursionError: JSON has no such value.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if _is_encodable(text) else json.dumps(value)


class _JsonCall:
    """A call of which name and arguments come in any order."""

    def __init__(self, source: TextSource, out: EventWriter, accepts: Accepts) -> None:
        self.has_begun = False
        self.is_complete = False
        self._source, self._out, self._accepts = source, out, accepts
        self._pending = ""  # arguments before the name

    def set_name(self, name: str) -> bool:
        if self.has_begun or not is_tool_name(name) or not self._accepts(name):
            return False
        self.has_begun = True
        self._source.unmark()
        self._out.begin(name)
        self._out.arguments(self._pending)
        return True

    def arguments(self, text: str) -> None:
        if self.has_begun:
            self._out.arguments(text)
        else:
            self._pending += text


def _read_members(source: TextSource, call: _JsonCall, *, is_nested: bool = False) -> Reading[bool]:
    """Read an object; return False if it is broken."""
    if not (yield from source.take("{")):
        return False
    while True:
        yield from source.skip_space()
        if (yield from source.take("}")):
            break
        key = yield from _read_string(source)
        yield from source.skip_space()
        if key is None or not (yield from source.take(":")):
            return False
        yield from source.skip_space()
        if key == "name":
            name = yield from _read_string(source)
            is_valid = name is not None and call.set_name(name)
        elif key in _ARGUMENTS_KEYS:
            is_valid = yield from _read_arguments(source, call)
        elif key == "function" and not is_nested and (yield from source.peek()) == "{":
            is_valid = yield from _read_members(source, call, is_nested=True)
        else:
            is_valid = yield from pass_json_value(source, discard)
        if not is_valid:
            return False
        yield from source.skip_space()
        yield from source.take(",")
    call.is_complete = call.has_begun
    return True


def _read_arguments(source: TextSource, call: _JsonCall) -> Reading[bool]:
    first = yield from source.peek()
    if first == '"':  # an object that the model wrote as a string
        text = yield from _read_string(source)
        if text is None:
            return False
        call.arguments(text if _is_encodable(text) else text.encode(errors="replace").decode())
        return True
    if first == "n":  # null
        return (yield from pass_json_value(source, discard))
    return (yield from pass_json_value(source, call.arguments))


def _read_string(source: TextSource) -> Reading[str | None]:
    """Read a JSON string; return None if there is none, or if it is broken."""
    if (yield from source.peek()) != '"':
        return None
    pieces: list[str] = []
    if not (yield from pass_json_value(source, pieces.append)):
        return None
    try:
        return str(json.loads("".join(pieces), strict=False))
    except ValueError:
        return None


def _is_encodable(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)
