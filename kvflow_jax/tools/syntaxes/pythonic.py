"""Pythonic: the whole output is a list of Python calls, ``[get_weather(city="Paris")]``."""

from __future__ import annotations

from collections.abc import Sequence

from kvflow_jax.tools.call_events import EventWriter
from kvflow_jax.tools.call_markup import CallMarkup
from kvflow_jax.tools.python_calls import read_python_call, write_python_call
from kvflow_jax.tools.syntaxes.base import Call, CallForm, CallLayout, CallSyntax, write_raw
from kvflow_jax.tools.text_source import Reading, TextSource
from kvflow_jax.tools.tool import Tool

_BEGIN, _END = "<|python_start|>", "<|python_end|>"  # Llama 4's


def read(source: TextSource, out: EventWriter, tools: dict[str, Tool]) -> Reading[None]:
    source.mark()
    yield from source.skip_space()
    yield from source.take(_BEGIN)
    yield from source.skip_space()
    is_list = yield from source.take("[")
    # A list of other things also looks like this: only the name of a tool makes it a call.
    num_calls = 0
    while is_list:
        yield from source.skip_space()
        if not (yield from read_python_call(source, out, tools, tools.__contains__)):
            break
        num_calls += 1
        yield from source.skip_space()
        if not (yield from source.take(",")):
            break
    if not num_calls:
        write_raw(source, out)
        return
    yield from source.skip_space()
    yield from source.take("]")
    yield from source.skip_space()
    yield from source.take(_END)


def write_calls(calls: Sequence[Call]) -> str:
    return f"[{', '.join(write_call(call) for call in calls)}]"


def write_call(call: Call) -> str:
    """Return one call as Python."""
    arguments = call.arguments if isinstance(call.arguments, dict) else {"text": call.arguments}
    return write_python_call(call.name, arguments)


def write_result(result: str) -> str:
    return result


PYTHONIC = CallSyntax(
    name="pythonic",
    families="Llama 3.2 and Llama 4 with a pythonic template, ToolACE",
    template_marks=(("[func_name1(",), ("<|python_start|>",)),
    read=read,
    markup=CallMarkup(spans=((_BEGIN, _END),), first_char="["),
    layouts=(CallLayout(CallForm.PYTHON, open="[", separator=", ", close="]"),),
    form="reply with nothing but a list of function calls in the format "
    "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)].",
    write_calls=write_calls,
    write_result=write_result,
)
