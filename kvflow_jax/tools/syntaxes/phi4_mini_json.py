"""Phi-4-mini: a JSON list behind ``<|tool_call|>`` or ``functools``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from kvflow_jax.tools.call_events import EventWriter
from kvflow_jax.tools.call_markup import CallMarkup
from kvflow_jax.tools.json_calls import is_tool_name, read_json_calls
from kvflow_jax.tools.syntaxes.base import (
    Call,
    CallForm,
    CallLayout,
    CallSyntax,
    pass_text,
    write_raw,
)
from kvflow_jax.tools.syntaxes.hermes import write_json_call
from kvflow_jax.tools.text_source import Reading, TextSource
from kvflow_jax.tools.tool import Tool

_BEGIN, _END = "<|tool_call|>", "<|/tool_call|>"
_FUNCTOOLS = "functools["


def read(source: TextSource, out: EventWriter, tools: dict[str, Tool]) -> Reading[None]:
    while marker := (yield from pass_text(source, out, [_BEGIN, _FUNCTOOLS])):
        if marker == _FUNCTOOLS:
            source.back(1)
        yield from source.skip_space()
        if not (yield from read_json_calls(source, out, is_tool_name)):
            write_raw(source, out)
            continue
        yield from source.skip_space()
        yield from source.take(_END)


def write_calls(calls: Sequence[Call]) -> str:
    return f"{_BEGIN}[{', '.join(write_json_call(call) for call in calls)}]{_END}"


def write_result(result: str) -> str:
    return json.dumps({"result": result}, ensure_ascii=False)


PHI4_MINI_JSON = CallSyntax(
    name="phi4_mini_json",
    families="Phi-4-mini",
    template_marks=(("<|tool|>",), ("functools[",), ("<|tool_call|>",)),
    read=read,
    markup=CallMarkup(spans=((_BEGIN, _END), (_FUNCTOOLS, ""))),
    layouts=(
        CallLayout(CallForm.ARGUMENTS, begin=_BEGIN, open="[", separator=", ", close=f"]{_END}"),
    ),
    form='reply with <|tool_call|>[{"name": function name, "arguments": {...}}]<|/tool_call|>.',
    write_calls=write_calls,
    write_result=write_result,
)
