"""Llama 3: the whole output is a JSON object ``{"name": ..., "parameters": {...}}``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from kvflow_jax.tools.call_events import EventWriter
from kvflow_jax.tools.call_markup import CallMarkup
from kvflow_jax.tools.json_calls import read_json_call
from kvflow_jax.tools.syntaxes.base import (
    Call,
    CallForm,
    CallLayout,
    CallSyntax,
    pass_text,
    write_raw,
)
from kvflow_jax.tools.text_source import Reading, TextSource
from kvflow_jax.tools.tool import Tool

_TAG = "<|python_tag|>"


def read(source: TextSource, out: EventWriter, tools: dict[str, Tool]) -> Reading[None]:
    source.mark()
    yield from source.skip_space()
    if (yield from source.peek()) == "{":
        yield from _read_calls(source, out, tools)
    else:
        write_raw(source, out)
    while (yield from pass_text(source, out, [_TAG])):
        yield from _read_calls(source, out, tools)


def _read_calls(source: TextSource, out: EventWriter, tools: dict[str, Tool]) -> Reading[None]:
    """Read calls with ``;`` between them."""
    is_first = True
    while True:
        yield from source.skip_space()
        # An answer in JSON also looks like this: only the name of a tool makes it a call.
        if not (yield from read_json_call(source, out, tools.__contains__)):
            if is_first:
                write_raw(source, out)
            return
        is_first = False
        yield from source.skip_space()
        if not (yield from source.take(";", ",")):
            return


def write_calls(calls: Sequence[Call]) -> str:
    return "; ".join(_write_call(call) for call in calls)


def _write_call(call: Call) -> str:
    text = call.arguments
    arguments = text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)
    return f'{{"name": {json.dumps(call.name)}, "parameters": {arguments}}}'


def write_result(result: str) -> str:
    return json.dumps({"output": result}, ensure_ascii=False)


LLAMA3_JSON = CallSyntax(
    name="llama3_json",
    families="Llama 3.1, 3.2, 3.3",
    template_marks=(("<|python_tag|>",), ('"parameters": dictionary', "ipython")),
    read=read,
    markup=CallMarkup(spans=((_TAG, ""),), first_char="{"),
    layouts=(CallLayout(CallForm.PARAMETERS, separator="; "),),
    form="respond with nothing but a JSON object in the format "
    '{"name": function name, "parameters": dictionary of argument name and its value}.',
    write_calls=write_calls,
    write_result=write_result,
)
