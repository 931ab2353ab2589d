"""Calls written as Python, ``get_weather(city="Paris")``, turned into JSON as they are read."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Mapping

from kvflow_jax.tools.call_events import EventWriter
from kvflow_jax.tools.json_calls import Accepts, is_tool_name, to_json
from kvflow_jax.tools.text_source import Reading, TextSource
from kvflow_jax.tools.tool import Tool

_KEYWORD = re.compile(r"([A-Za-z_]\w*)\s*=(?!=)\s*(.*)", re.DOTALL)
_MAX_NAME_LEN = 128


def read_python_call(
    source: TextSource, out: EventWriter, tools: dict[str, Tool], accepts: Accepts
) -> Reading[bool]:
    """Read one call; return False if the text is none, or ends before its parenthesis.

    An argument is passed on when it is complete. Positional arguments get the names of the tool's
    parameters, in the order of their declaration.
    """
    name = yield from source.take_while(_is_name_char, _MAX_NAME_LEN)
    yield from source.skip_space()
    if not is_tool_name(name) or not accepts(name) or not (yield from source.take("(")):
        return False
    source.unmark()
    out.begin(name)
    positions = list(tools[name].parameters) if name in tools else []
    separator = "{"
    num_positional = 0
    while True:
        yield from source.skip_space()
        if (yield from source.take(")")):
            break
        argument = yield from _read_argument(source)
        if argument is None:  # cut, or broken
            return True
        keyword = _KEYWORD.fullmatch(argument)
        if keyword:
            key, value = keyword.groups()
        else:
            known = num_positional < len(positions)
            key = positions[num_positional] if known else f"arg{num_positional}"
            value = argument
            num_positional += 1
        out.arguments(f"{separator}{to_json(key)}: {_literal_to_json(value)}")
        separator = ", "
        yield from source.take(",")
    out.arguments("}" if separator != "{" else "{}")
    out.end()
    return True


def write_python_call(name: str, arguments: Mapping[str, object]) -> str:
    """Return a call as Python writes it."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def is_keyword(name: str) -> bool:
    """True if a parameter of this name can be written as ``name=value``."""
    return _KEYWORD.fullmatch(f"{name}=") is not None


def _is_name_char(char: str) -> bool:
    return char.isascii() and (char.isalnum() or char in "_.-")


def _read_argument(source: TextSource) -> Reading[str | None]:
    """Read up to the comma or parenthesis behind an argument; None if the text ends before it."""
    pieces: list[str] = []
    depth, quote, is_escaped = 0, "", False
    while text := (yield from source.available()):
        for i, char in enumerate(text):
            if quote:
                if char == quote and not is_escaped:
                    quote = ""
                is_escaped = char == "\\" and not is_escaped
            elif char in "\"'":
                quote = char
            elif not depth and char in ",)":
                pieces.append(text[:i])
                source.skip(i)
                argument = "".join(pieces).strip()
                return argument or None
            elif char in "([{":
                depth += 1
            elif char in ")]}":
                depth -= 1
                if depth < 0:
                    return None
        pieces.append(text)
        source.skip(len(text))
    return None


def _literal_to_json(text: str) -> str:
    """Return a Python or JSON literal as JSON; any other text as a JSON string."""
    try:
        return to_json(json.loads(text))
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            # Python warns of escapes that it does not know, as in '\d'.
            warnings.simplefilter("ignore")
            value = ast.literal_eval(text)
        return to_json(list(value) if isinstance(value, set) else value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return to_json(text)
