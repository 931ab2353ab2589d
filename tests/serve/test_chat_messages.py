"""Messages as they reach the chat template, and which are refused."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.serve.chat_messages import read_fixed_messages, read_messages
from kvflow_jax.serve.schemas import ChatRequest
from tests.serve.serve_fakes import FakeEngine, LiveServer
from tests.serve.serve_requests import CHAT, HELLO, error_of


def test_roles_and_parts_reach_the_template(client: openai.OpenAI, engine: FakeEngine) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "be kind"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "1",
                        "type": "function",
                        "function": {"name": "f", "arguments": '{"x": 1}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "2"},
            {"role": "critic", "content": "3"},
        ],
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    prompt = engine.last.prompt
    assert prompt.startswith("<system>be kind<user>a\nb<assistant><tool>2<critic>3")
    assert "'arguments': {'x': 1}" in prompt
    assert "[enable_thinking=False]" in prompt


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"x": 1}', {"x": 1}),
        ({"x": 1}, {"x": 1}),
        (None, {}),
        ("[1]", "[1]"),  # no object: kept as text
        ('{"x": ', '{"x": '),
        ('{"x": "\\ud800"}', {"x": "\ufffd"}),  # half a character, which no tokenizer encodes
    ],
)
def test_arguments_of_the_history_are_objects_where_they_can_be(arguments: Any, read: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    (read_message,) = read_messages(ChatRequest(messages=[message]))
    assert read_message["content"] == ""
    assert read_message["tool_calls"][0]["function"] == {"name": "f", "arguments": read}


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool", "critic"])
def test_a_message_may_have_no_content(role: str) -> None:
    for content in (None, [], ""):
        message = {"role": role, "content": content}
        assert read_messages(ChatRequest(messages=[message])) == [{"role": role, "content": ""}]


@pytest.mark.parametrize(
    "content",
    [
        ["a", "b"],
        [{"text": "a"}, {"type": "text", "text": "b"}],
        [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "b"}],
        {"type": "text", "text": "a\nb"},
    ],
)
def test_texts_are_read_in_any_form_that_clients_keep(content: Any) -> None:
    (read,) = read_messages(ChatRequest(messages=[{"role": "assistant", "content": content}]))
    assert read["content"] == "a\nb"


def test_thinking_in_the_content_of_an_assistant_is_its_reasoning() -> None:
    parts = [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "reasoning", "text": "so"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "yes"},
    ]
    message = {"role": "assistant", "content": parts}
    (read,) = read_messages(ChatRequest(messages=[message]))
    assert read == {"role": "assistant", "content": "yes", "reasoning_content": "hm\nso"}
    (read,) = read_messages(ChatRequest(messages=[{**message, "reasoning": "given"}]))
    assert read == {"role": "assistant", "content": "yes", "reasoning": "given"}
    with pytest.raises(InvalidRequestError, match="'thinking'"):
        read_messages(ChatRequest(messages=[{"role": "user", "content": parts}]))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "a robot", "content": "hi"}, "system, developer, user, assistant, tool"),
        ({"role": "user", "content": 3}, "a string or a list of parts"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "has type 'image_url'"),
        ({"role": "user", "content": [{"type": "text"}]}, "text must be a string"),
        ({"role": "assistant", "content": "", "tool_calls": "f"}, "a list of tool calls"),
        ({"role": "assistant", "content": "", "tool_calls": [{}]}, "an object with a name"),
    ],
)
def test_the_error_of_a_message_says_what_is_accepted(message: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words) as raised:
        read_messages(ChatRequest(messages=[message]))
    assert str(raised.value.param).startswith("messages[0].")


@pytest.mark.parametrize("calls", [[], None, {}])
def test_a_message_without_calls_has_no_field_of_calls(calls: Any) -> None:
    message = {"role": "assistant", "content": "hi", "tool_calls": calls}
    assert read_messages(ChatRequest(messages=[message])) == [
        {"role": "assistant", "content": "hi"}
    ]


@pytest.mark.parametrize("field", ["name", "arguments"])
def test_a_call_longer_than_the_context_is_not_tokenized(
    live: LiveServer, http: httpx.Client, field: str
) -> None:
    function = {"name": "f", "arguments": "{}", field: "x" * 4000}
    messages = [{"role": "assistant", "tool_calls": [{"function": function}]}]
    num_rendered = live.tokenizer.num_rendered
    error = error_of(http.post(CHAT, json={"messages": messages}), 400)
    assert error["code"] == "context_length_exceeded"
    assert live.tokenizer.num_rendered == num_rendered


def test_the_arguments_of_all_calls_have_a_limit_of_values(http: httpx.Client) -> None:
    def messages(arguments: str) -> list[dict[str, Any]]:
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}
        return [*HELLO, {"role": "assistant", "tool_calls": [call]}] * 2

    many = '{"a": [' + "[]," * 20_000 + "1]}"
    error = error_of(http.post(CHAT, json={"messages": messages(many)}), 413)
    assert error["code"] == "body_too_complex"
    text = json.dumps({"code": "[]," * 20_000})
    error = error_of(http.post(CHAT, json={"messages": messages(text)}), 400)
    assert error["code"] == "context_length_exceeded"  # read, and too long for this model


MARK = {"cache_control": {"type": "ephemeral"}}


def parts(*texts: str, marked: int | None = None) -> list[dict[str, Any]]:
    return [
        {"type": "text", "text": text, **(MARK if i == marked else {})}
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("system", "fixed"),
    [
        ([{"content": "a"}], []),
        ([{"content": parts("a", "b")}], []),
        ([{"content": parts("a", "b", "c", marked=1)}], ["a\nb"]),
        ([{"content": "a", **MARK}], ["a"]),
        ([{"content": "a"}, {"content": parts("b", "c", marked=0)}], ["a", "b"]),
        ([{"content": parts("a", marked=0)}, {"content": "b"}], ["a"]),
        ([{"content": [{**part, **MARK} for part in parts("a", "b")], **MARK}], ["a\nb"]),
        ([{"content": parts("a"), "cache_control": None}], []),
        ([{"content": {"type": "text", "text": "a", **MARK}}], ["a"]),
    ],
)
def test_marks_of_the_first_system_messages_end_the_fixed_prefix(
    system: list[dict[str, Any]], fixed: list[str]
) -> None:
    user = {"role": "user", "content": [{**part, **MARK} for part in parts("x", "y")]}
    messages = [*({"role": "system", **one} for one in system), user]
    body = ChatRequest(messages=messages)
    assert [message["content"] for message in read_fixed_messages(body)] == fixed
    assert "cache" not in json.dumps(read_messages(body))  # no template sees them


def test_a_mark_of_a_later_system_message_is_no_end() -> None:
    late = {"role": "system", "content": parts("a", marked=0)}
    body = ChatRequest(messages=[*HELLO, late])
    assert read_fixed_messages(body) == []


def test_the_marked_prefix_of_an_agent_is_measured(http: httpx.Client, engine: FakeEngine) -> None:
    system = {"role": "system", "content": parts("Plan.", "Today is Friday.", marked=0)}
    body = {"messages": [system, *HELLO], "agent_hints": {"agent_id": "a"}}
    assert http.post(CHAT, json=body).status_code == 200
    assert engine.last.hints.num_fixed == len("<system>Plan.")
