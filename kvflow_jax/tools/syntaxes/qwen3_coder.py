"""Qwen3-Coder: XML-like tags for the function and each parameter, whose values are plain text."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kvflow_jax.tools.call_events import EventWriter
from kvflow_jax.tools.call_markup import CallMarkup
from kvflow_jax.tools.json_calls import is_tool_name, to_json
from kvflow_jax.tools.syntaxes.base import (
    Call,
    CallForm,
    CallLayout,
    CallSyntax,
    pass_text,
    write_raw,
)
from kvflow_jax.tools.text_source import Reading, TextSource, discard
from kvflow_jax.tools.tool import Tool

_BEGIN, _END = "<tool_call>", "</tool_call>"
FUNCTION, FUNCTION_END = "<function=", "</function>"
PARAMETER, PARAMETER_END = "<parameter=", "</parameter>"
_MAX_NAME_LEN = 128


def read(source: TextSource, out: EventWriter, tools: dict[str, Tool]) -> Reading[None]:
    # The model sometimes leaves the outer tag out.
    while marker := (yield from pass_text(source, out, [_BEGIN, FUNCTION])):
        yield from source.skip_space()
        has_function = marker == FUNCTION or (yield from source.take(FUNCTION))
        name = (yield from _read_name(source)) if has_function else ""
        if not is_tool_name(name):
            write_raw(source, out)
            continue
        source.unmark()
        out.begin(name)
        tool = tools.get(name)
        if (yield from _read_parameters(source, out, tool.parameters if tool else {})):
            out.end()
            yield from source.skip_space()
            yield from source.take(_END)
        else:
            yield from source.pass_until([_END], discard)


def _read_name(source: TextSource) -> Reading[str]:
    """Read a name and the ``>`` behind it; return "" if there is none."""
    name = yield from source.take_while(lambda char: char not in "<>\n", _MAX_NAME_LEN)
    return name.strip() if (yield from source.take(">")) else ""


def _read_parameters(
    source: TextSource, out: EventWriter, schemas: Mapping[str, Any]
) -> Reading[bool]:
    """Read parameters up to the end of the function; return False if they are cut or broken."""
    separator = "{"
    while True:
        yield from source.skip_space()
        if not (yield from source.take(PARAMETER)):
            if not (yield from source.take(FUNCTION_END)):
                return False
            break
        name = yield from _read_name(source)
        if not name:
            return False
        out.arguments(f"{separator}{to_json(name)}: ")
        separator = ", "
        yield from source.take("\n")
        schema = schemas.get(name)
        read_value = _read_text if is_text(schema) else _read_other
        end = yield from read_value(source, out.arguments)
        if end == FUNCTION_END:
            break
        if not end:
            return False
    out.arguments("}" if separator != "{" else "{}")
    return True


def _read_text(source: TextSource, emit: Callable[[str], None]) -> Reading[str]:
    """Stream a value as a JSON string; return the tag behind it, "" at the end of the output."""
    pending = ""

    def emit_text(text: str) -> None:
        # The last line break belongs to the closing tag.
        nonlocal pending
        text = pending + text
        pending = "\n" if text.endswith("\n") else ""
        emit(json.dumps(text.removesuffix("\n"), ensure_ascii=False)[1:-1])

    emit('"')
    end = yield from source.pass_until(
        [PARAMETER_END, FUNCTION_END], emit_text, drops_cut_marker=True
    )
    if end:
        emit('"')
    return end


def _read_other(source: TextSource, emit: Callable[[str], None]) -> Reading[str]:
    """Emit a value that is no string, once it is complete."""
    pieces: list[str] = []
    end = yield from source.pass_until([PARAMETER_END, FUNCTION_END], pieces.append)
    if end:
        emit(_value_to_json("".join(pieces).removesuffix("\n")))
    return end


def is_text(schema: Any) -> bool:
    """True if a value is a string; one without a schema is, too."""
    if not isinstance(schema, Mapping):
        return True
    kinds = schema.get("type")
    if kinds is None:
        values = schema.get("enum")
        if isinstance(values, list) and values:
            return all(isinstance(value, str) for value in values)
        return not schema.keys() & {"anyOf", "oneOf", "allOf", "$ref"}
    return kinds in ("string", ["string"])


def _value_to_json(text: str) -> str:
    try:
        return to_json(json.loads(text))
    except (ValueError, RecursionError):
        pass
    # Qwen3-Coder writes True, False and None, and lists with single quotes.
    try:
        return to_json(ast.literal_eval(text.strip()))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return to_json(text)


def write_calls(calls: Sequence[Call]) -> str:
    return "\n".join(_write_call(call) for call in calls)


def _write_call(call: Call) -> str:
    arguments = call.arguments if isinstance(call.arguments, dict) else {"text": call.arguments}
    parameters = [
        f"{PARAMETER}{name}>\n{value if isinstance(value, str) else to_json(value)}\n"
        f"{PARAMETER_END}\n"
        for name, value in arguments.items()
    ]
    return f"{_BEGIN}\n{FUNCTION}{call.name}>\n{''.join(parameters)}{FUNCTION_END}\n{_END}"


def write_result(result: str) -> str:
    return f"<tool_response>\n{result}\n</tool_response>"


QWEN3_CODER = CallSyntax(
    name="qwen3_coder",
    families="Qwen3-Coder",
    template_marks=(("<tool_call>", "<function=", "<parameter="),),
    read=read,
    markup=CallMarkup(spans=((_BEGIN, _END), (FUNCTION, FUNCTION_END))),
    layouts=(
        CallLayout(
            CallForm.TAGS,
            begin=_BEGIN,
            open="\n",
            separator=f"\n{_END}\n{_BEGIN}\n",
            close=f"\n{_END}",
        ),
    ),
    form="reply in the following format:\n<tool_call>\n<function=example_function_name>\n"
    "<parameter=example_parameter>\nvalue\n</parameter>\n</function>\n</tool_call>",
    write_calls=write_calls,
    write_result=write_result,
)
