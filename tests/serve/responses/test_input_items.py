from __future__ import annotations

from typing import Any

import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.serve.responses.input_items import read_input
from kvflow_jax.serve.responses.tools import ToolNames


def messages_of(*items: dict[str, Any]) -> list[dict[str, Any]]:
    return read_input(None, items, ToolNames())


def call_of(call_id: str, arguments: str) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": arguments}


def test_a_turn_of_the_assistant_is_one_message() -> None:
    messages = messages_of(
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": "I look."},
        call_of("a", "{}"),
        call_of("b", "no JSON"),
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {
            "type": "function_call_output",
            "call_id": "b",
            "output": [{"type": "input_text", "text": "2"}, {"type": "input_text", "text": "3"}],
        },
    )
    calls = [
        {"id": call_id, "type": "function", "function": {"name": "f", "arguments": arguments}}
        for call_id, arguments in (("a", "{}"), ("b", "no JSON"))
    ]
    assert messages == [
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": calls,
        },
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": "2\n3"},
    ]


def test_a_summary_stands_for_reasoning_without_text() -> None:
    summary = [{"type": "summary_text", "text": "short"}]
    item = {"type": "reasoning", "summary": summary, "encrypted_content": "x"}
    (message,) = messages_of(item, {"role": "assistant", "content": "x"})
    assert message["reasoning_content"] == "short"


def test_reasoning_alone_and_traces_of_hosted_tools_are_no_messages() -> None:
    messages = messages_of(
        {"type": "reasoning", "summary": []},
        {"type": "web_search_call", "id": "ws_1"},
        {"role": "user", "content": "hi"},
    )
    assert messages == [{"role": "user", "content": "hi"}]


def test_instructions_come_first() -> None:
    assert read_input("Plan.", "hi", ToolNames()) == [
        {"role": "system", "content": "Plan."},
        {"role": "user", "content": "hi"},
    ]


@pytest.mark.parametrize(
    ("item", "param"), [({"type": ["message"]}, "input[0].type"), ({"type": "reasoning"}, "input")]
)
def test_an_input_without_a_message_is_refused(item: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as raised:
        messages_of(item)
    assert raised.value.param == param


def test_a_turn_of_many_items_is_one_message() -> None:
    # Quadratic work for it would take a minute.
    items = [{"role": "assistant", "content": "x" * 900}] * 30_000
    reasoning = [{"type": "reasoning", "content": [{"text": "y" * 900}]}] * 30_000
    (message,) = read_input(None, [*reasoning, *items], ToolNames())
    assert message["content"] == "\n".join(["x" * 900] * 30_000)
    assert message["reasoning_content"] == "y" * 900 * 30_000
