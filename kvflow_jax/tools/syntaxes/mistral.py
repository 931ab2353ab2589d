"""Mistral: ``[TOOL_CALLS]``, then a list of JSON objects or, newer, ``name[ARGS]{...}``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from kvflow_jax.tools.call_events import EventWriter
from kvflow_jax.tools.call_markup import CallMarkup
from kvflow_jax.tools.json_calls import is_tool_name, pass_json_value, read_json_calls
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

_BEGIN, ARGS, _CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_MAX_NAME_LEN = 128


def read(source: TextSource, out: EventWriter, tools: dict[str, Tool]) -> Reading[None]:
    while (yield from pass_text(source, out, [_BEGIN])):
        yield from source.skip_space()
        is_old_form = (yield from source.peek()) in ("[", "{")
        if is_old_form:
            has_call = yield from read_json_calls(source, out, is_tool_name)
        else:
            has_call = yield from _read_named_call(source, out)
        if not has_call:
            write_raw(source, out)


def _read_named_call(source: TextSource, out: EventWriter) -> Reading[bool]:
    """Read ``name[CALL_ID]id[ARGS]{...}``; the two markers may be missing."""
    name = (yield from source.take_while(lambda char: char not in "[{", _MAX_NAME_LEN)).strip()
    if (yield from source.take(_CALL_ID)):
        yield from source.take_while(str.isalnum, _MAX_NAME_LEN)
    yield from source.take(ARGS)
    yield from source.skip_space()
    if not is_tool_name(name) or (yield from source.peek()) != "{":
        return False
    source.unmark()
    out.begin(name)
    if (yield from pass_json_value(source, out.arguments)):
        out.end()
    return True


def write_calls(calls: Sequence[Call]) -> str:
    return f"{_BEGIN} [{', '.join(write_json_call(call) for call in calls)}]"


def write_named_calls(calls: Sequence[Call]) -> str:
    """Return calls in the newer form."""
    return "".join(
        f"{_BEGIN}{call.name}{ARGS}"
        + (
            call.arguments
            if isinstance(call.arguments, str)
            else json.dumps(call.arguments, ensure_ascii=False)
        )
        for call in calls
    )


def write_result(result: str) -> str:
    return f'[TOOL_RESULTS] {{"content": {json.dumps(result, ensure_ascii=False)}}}[/TOOL_RESULTS]'


MISTRAL = CallSyntax(
    name="mistral",
    families="Mistral, Ministral, Devstral, Magistral",
    template_marks=(("[TOOL_CALLS]",),),
    read=read,
    markup=CallMarkup(spans=((_BEGIN, ""),), tokens=(ARGS, _CALL_ID)),
    layouts=(
        CallLayout(CallForm.NAMED, begin=_BEGIN, separator=_BEGIN, template_mark=ARGS),
        CallLayout(CallForm.ARGUMENTS, begin=_BEGIN, open=" [", separator=", ", close="]"),
    ),
    form='reply with [TOOL_CALLS] [{"name": function name, "arguments": {...}}].',
    write_calls=write_calls,
    write_result=write_result,
    call_id_len=9,  # its templates refuse other lengths
)
