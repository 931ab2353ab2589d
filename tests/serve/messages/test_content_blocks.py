from __future__ import annotations

from typing import Any

import pytest

from kvflow_jax.serve import chat_messages
from kvflow_jax.serve.messages.content_blocks import read_messages
from kvflow_jax.serve.schemas import ChatRequest

USER = {"role": "user", "content": "hi"}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value, "cache_control": {"type": "ephemeral"}}


def to_chat(system: Any) -> ChatRequest:
    return ChatRequest(messages=read_messages(system, [USER]))


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        (None, None),
        ("", None),
        ("Plan.", "Plan."),
        ([text("a"), text(" "), text("b")], "a\nb"),
    ],
)
def test_the_system_text_is_the_first_message(system: Any, expected: str | None) -> None:
    first = [] if expected is None else [{"role": "system", "content": expected}]
    assert chat_messages.read_messages(to_chat(system)) == [*first, USER]


def test_blocks_of_the_assistant_are_one_message() -> None:
    content = [
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        text(""),
        text("I look."),
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
    ]
    first, _ = read_messages(None, [{"role": "assistant", "content": content}, USER])
    call = {"id": "t", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert first == {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "Hm.",
        "tool_calls": [call],
    }


def test_results_and_texts_of_the_user_keep_their_order() -> None:
    result = {"type": "tool_result", "tool_use_id": "t", "content": [text("1")], "is_error": True}
    assert read_messages(None, [{"role": "user", "content": [text("a"), result, text("b")]}]) == [
        {"role": "user", "content": "a"},
        {"role": "tool", "tool_call_id": "t", "content": "Error: 1"},
        {"role": "user", "content": "b"},
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [("no such file", "Error: no such file"), ("error 5", "error 5"), (None, "Error")],
)
def test_a_result_that_is_an_error_says_so(content: str | None, expected: str) -> None:
    block = {"type": "tool_result", "tool_use_id": "t", "content": content, "is_error": True}
    (message,) = read_messages(None, [{"role": "user", "content": [block]}])
    assert message["content"] == expected


def test_the_last_mark_of_the_system_text_ends_the_fixed_messages() -> None:
    def fixed(system: Any) -> list[dict[str, Any]]:
        return chat_messages.read_fixed_messages(to_chat(system))

    plain = {"type": "text", "text": "Today is Monday."}
    marked = [{"role": "system", "content": "Plan.\nAct."}]
    assert fixed([text("Plan."), text(" "), text("Act."), plain, text("")]) == marked
    assert fixed([plain]) == fixed("Plan.") == []
