"""Gemma's prompt form: Python calls within a ``tool_code`` fence, results in ``tool_output``."""

from __future__ import annotations

from collections.abc import Sequence

from kvflow_jax.tools.call_events import EventWriter
from kvflow_jax.tools.call_markup import CallMarkup
from kvflow_jax.tools.json_calls import is_tool_name
from kvflow_jax.tools.python_calls import read_python_call
from kvflow_jax.tools.syntaxes.base import (
    Call,
    CallForm,
    CallLayout,
    CallSyntax,
    pass_text,
    write_raw,
)
from kvflow_jax.tools.syntaxes.pythonic import write_call
from kvflow_jax.tools.text_source import Reading, TextSource, discard
from kvflow_jax.tools.tool import Tool

_BEGIN, _END = "```tool_code", "```"


def read(source: TextSource, out: EventWriter, tools: dict[str, Tool]) -> Reading[None]:
    while (yield from pass_text(source, out, [_BEGIN])):
        num_before = out.num_calls
        yield from source.skip_space()
        yield from source.take("[")
        while (yield from read_python_call(source, out, tools, is_tool_name)):
            yield from source.skip_space()
            yield from source.take(",")
            yield from source.skip_space()
        if out.num_calls == num_before:
            write_raw(source, out)
        else:
            yield from source.pass_until([_END], discard)


def write_calls(calls: Sequence[Call]) -> str:
    return "\n".join([_BEGIN, *(write_call(call) for call in calls), _END])


def write_result(result: str) -> str:
    return f"```tool_output\n{result}\n```"


GEMMA = CallSyntax(
    name="gemma",
    families="Gemma 2 and 3, whose templates know no tools",
    template_marks=(("<start_of_turn>",),),
    read=read,
    markup=CallMarkup(spans=((_BEGIN, _END),)),
    layouts=(
        CallLayout(CallForm.PYTHON, begin=_BEGIN, open="\n", separator="\n", close=f"\n{_END}"),
    ),
    form="write Python within a fence:\n```tool_code\nfunction_name(parameter=value)\n```",
    write_calls=write_calls,
    write_result=write_result,
)
