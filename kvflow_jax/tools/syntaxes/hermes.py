"""Hermes: a JSON object within ``<tool_call>`` tags."""

from __future__ import annotations

import json
from collections.abc import Sequence

from kvflow_jax.tools.call_events import EventWriter
from kvflow_jax.tools.call_markup import CallMarkup
from kvflow_jax.tools.json_calls import is_tool_name, read_json_call
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


def read(source: TextSource, out: EventWriter, tools: dict[str, Tool]) -> Reading[None]:
    while (yield from pass_text(source, out, [_BEGIN])):
        yield from source.skip_space()
        if not (yield from read_json_call(source, out, is_tool_name)):
            write_raw(source, out)
            continue
        yield from source.skip_space()
        is_closed = yield from source.take(_END)
        # Behind broken JSON, the rest of the markup is no text.
        if (
            not is_closed
            and out.is_in_call
            and (yield from source.pass_until([_END, _BEGIN], discard)) == _BEGIN
        ):
            source.back(len(_BEGIN))


def write_json_call(call: Call) -> str:
    """Return ``{"name": ..., "arguments": ...}``; arguments that are text are written as such."""
    text = call.arguments
    arguments = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return f'{{"name": {json.dumps(call.name)}, "arguments": {arguments}}}'


def write_calls(calls: Sequence[Call]) -> str:
    return "\n".join(f"{_BEGIN}\n{write_json_call(call)}\n{_END}" for call in calls)


def write_result(result: str) -> str:
    return f"<tool_response>\n{result}\n</tool_response>"


HERMES = CallSyntax(
    name="hermes",
    families="Hermes, Qwen 2.5, Qwen 3; models whose template knows no tools",
    template_marks=(("<tool_call>",),),
    read=read,
    markup=CallMarkup(spans=((_BEGIN, _END),)),
    layouts=(
        CallLayout(
            CallForm.ARGUMENTS,
            begin=_BEGIN,
            open="\n",
            separator=f"\n{_END}\n{_BEGIN}\n",
            close=f"\n{_END}",
        ),
    ),
    form="return a json object with function name and arguments within <tool_call></tool_call> "
    'XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>",
    write_calls=write_calls,
    write_result=write_result,
)
