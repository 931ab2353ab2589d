"""``/v1/messages`` over the production engine, by Anthropic's own client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from tests.support.scripted_runner import MODEL, ScriptedServer, scripted_server

HELLO = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
def http(server: ScriptedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as http:
        yield http


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Return the error of an answer, after a check of its status and of Anthropic's format."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"type", "error"}
    assert body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}
    return body["error"]


def test_a_text_is_a_message(server: ScriptedServer, client: anthropic.Anthropic) -> None:
    server.script("Paris.")
    message = client.messages.create(
        model=MODEL,
        max_tokens=32,
        system=[
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Be kind."},
        ],
        messages=[{"role": "user", "content": [{"type": "text", "text": "Capital of France?"}]}],
    )
    assert server.runner.prompts == [
        "<|im_start|>system\nBe brief.\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nCapital of France?<|im_end|>\n<|im_start|>assistant\n"
    ]
    assert message.id.startswith("msg_")
    assert message.role == "assistant"
    assert message.model == MODEL
    (block,) = message.content
    assert block.type == "text"
    assert block.text == "Paris."
    assert message.stop_reason == "end_turn"
    assert message.stop_sequence is None
    assert message.usage.output_tokens == len("Paris.") + 1


def test_a_text_streams_as_its_events(server: ScriptedServer, client: anthropic.Anthropic) -> None:
    server.script("Hélas, 你好!")
    with client.messages.create(model=MODEL, max_tokens=32, messages=HELLO, stream=True) as stream:
        events = list(stream)
    deltas = [event for event in events if event.type == "content_block_delta"]
    assert [event.type for event in events] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * len(deltas),
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0].message.usage.input_tokens > 0
    assert "".join(event.delta.text for event in deltas) == "Hélas, 你好!"
    assert events[-2].delta.stop_reason == "end_turn"
    assert events[-2].usage.output_tokens > 0


def test_the_client_accumulates_a_stream(
    server: ScriptedServer, client: anthropic.Anthropic
) -> None:
    server.script("one two")
    with client.messages.stream(model=MODEL, max_tokens=32, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == "one two"
        message = stream.get_final_message()
    assert message.stop_reason == "end_turn"
    assert message.content[0].text == "one two"


def test_a_ping_follows_the_start_of_the_first_block(
    server: ScriptedServer, http: httpx.Client
) -> None:
    server.script("x")
    body = {"messages": HELLO, "max_tokens": 8, "stream": True}
    text = http.post("/v1/messages?beta=true", json=body).text
    names = [line[7:] for line in text.splitlines() if line.startswith("event: ")]
    assert names[:3] == ["message_start", "content_block_start", "ping"]
    assert names.count("ping") == 1
    assert names[-1] == "message_stop"
    assert text.endswith('data: {"type":"message_stop"}\n\n')


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("text", "fields", "stop_reason", "stop_sequence"),
    [
        ("aaaaaaaa", {"max_tokens": 4}, "max_tokens", None),
        ("a,b", {"stop_sequences": [",", ";"]}, "stop_sequence", ","),
        ("a", {}, "end_turn", None),
        ("", {}, "end_turn", None),
    ],
)
def test_the_reason_of_the_end(
    server: ScriptedServer,
    client: anthropic.Anthropic,
    text: str,
    fields: dict[str, Any],
    stop_reason: str,
    stop_sequence: str | None,
    streams: bool,
) -> None:
    server.script(text)
    fields = {"model": MODEL, "max_tokens": 32, "messages": HELLO, **fields}
    if streams:
        with client.messages.stream(**fields) as stream:
            message = stream.get_final_message()
    else:
        message = client.messages.create(**fields)
    assert (message.stop_reason, message.stop_sequence) == (stop_reason, stop_sequence)
    assert len(message.content) == 1


def test_input_tokens_exclude_those_read_from_the_cache(
    server: ScriptedServer, client: anthropic.Anthropic
) -> None:
    server.script("a", "b", "c")
    fields: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 8,
        "system": "s" * 100,
        "messages": [{"role": "user", "content": "cached?"}],
    }
    count = client.messages.count_tokens(
        model=MODEL, system=fields["system"], messages=fields["messages"]
    ).input_tokens
    first = client.messages.create(**fields).usage
    assert (first.input_tokens, first.cache_read_input_tokens) == (count, 0)
    second = client.messages.create(**fields).usage
    assert second.cache_read_input_tokens >= 96
    assert second.input_tokens + second.cache_read_input_tokens == count
    with client.messages.stream(**fields) as stream:
        third = stream.get_final_message().usage
    assert third.input_tokens == second.input_tokens
    assert third.cache_read_input_tokens == second.cache_read_input_tokens


def test_what_clients_add_never_reaches_the_prompt(
    server: ScriptedServer, http: httpx.Client
) -> None:
    server.script("ok")
    mark = {"cache_control": {"type": "ephemeral"}}
    body = {
        "max_tokens": 8,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2; cch=7f1;"},
            {"type": "text", "text": "You code.", **mark},
        ],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi", **mark}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": ""},
                    {"type": "text", "text": "hello", **mark},
                ],
            },
            {"role": "system", "content": "5 tokens left"},
            {"role": "user", "content": "more"},
        ],
        "metadata": {"user_id": '{"session_id":"ba68"}'},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": []},
        "output_config": {"effort": "high"},
    }
    answer = http.post("/v1/messages?beta=true", json=body)
    assert answer.status_code == 200, answer.text
    assert server.runner.prompts[0] == (
        "<|im_start|>system\nYou code.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>system\n5 tokens left<|im_end|>\n"
        "<|im_start|>user\nmore<|im_end|>\n<|im_start|>assistant\n"
    )


IMAGE = {"type": "image", "source": {"type": "url", "url": "http://x/"}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "'image'"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
        ({"messages": [{"role": "assistant", "content": " "}]}, "cannot be continued"),
        ({"system": 7}, "system"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"tools": [{"name": 7}]}, "tools[0].name"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "input_schema"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"temperature": -1}, "temperature"),
        ({"output_config": {"format": {"type": "xml"}}}, "json_schema"),
    ],
)
def test_bad_bodies_are_refused_by_field(
    http: httpx.Client, fields: dict[str, Any], message: str
) -> None:
    answer = http.post("/v1/messages", json={"max_tokens": 8, "messages": HELLO, **fields})
    error = error_of(answer, 400)
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]


def test_other_errors_have_anthropics_types(http: httpx.Client) -> None:
    body = {"max_tokens": 8, "messages": HELLO}
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        error = error_of(http.post(path, json={"model": "other", **body}), 404)
        assert error["type"] == "not_found_error"
        assert error_of(http.post(path, content="{"), 400)["type"] == "invalid_request_error"
        assert error_of(http.get(path), 405)["type"] == "invalid_request_error"
    assert error_of(http.get("/v1/messages/batches"), 404)["type"] == "not_found_error"


def test_a_step_that_fails_is_an_api_error(server: ScriptedServer, http: httpx.Client) -> None:
    server.script()  # without a script the step fails
    answer = http.post("/v1/messages", json={"max_tokens": 8, "messages": HELLO})
    assert error_of(answer, 500)["type"] == "api_error"


@pytest.mark.parametrize("length", [8200, 5_000_000])
def test_an_overlong_prompt_says_so_in_anthropics_words(
    client: anthropic.Anthropic, length: int
) -> None:
    messages = [{"role": "user", "content": "x" * length}]
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d+ tokens > 8191 m"):
        client.messages.create(model=MODEL, max_tokens=8, messages=messages)


WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    "cache_control": {"type": "ephemeral"},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.mark.parametrize("streams", [False, True])
def test_calls_are_tool_use_blocks(
    server: ScriptedServer, client: anthropic.Anthropic, streams: bool
) -> None:
    server.script("I look." + CALL + CALL)
    fields: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 512,
        "messages": HELLO,
        "tools": [WEATHER, {"type": "web_search_20250305", "name": "web_search"}],
        "tool_choice": {"type": "auto"},
    }
    if streams:
        with client.messages.stream(**fields) as stream:
            kinds = [event.type for event in stream]
            message = stream.get_final_message()
        assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 3
        assert "input_json" in kinds
    else:
        message = client.messages.create(**fields)
    text, first, second = message.content
    assert text.text == "I look."
    assert first.type == second.type == "tool_use"
    assert first.name == "get_weather"
    assert first.input == {"city": "Paris"}
    assert first.id.startswith("toolu_")
    assert first.id != second.id
    assert message.stop_reason == "tool_use"
    assert "web_search" not in server.runner.prompts[0]
    assert "cache_control" not in server.runner.prompts[0]


@pytest.mark.parametrize("content", ["sun", [{"type": "text", "text": "sun"}], None])
def test_a_turn_with_calls_and_results_goes_on(
    server: ScriptedServer, client: anthropic.Anthropic, content: Any
) -> None:
    server.script("I look." + CALL, "Sunny.")
    fields: dict[str, Any] = {"model": MODEL, "max_tokens": 512, "tools": [WEATHER]}
    first = client.messages.create(messages=HELLO, **fields)
    result = {
        "type": "tool_result",
        "tool_use_id": first.content[1].id,
        "content": content,
        "is_error": False,
    }
    history = [
        *HELLO,
        {"role": "assistant", "content": [block.model_dump() for block in first.content]},
        {"role": "user", "content": [result, {"type": "text", "text": "and now?"}]},
    ]
    second = client.messages.create(messages=history, **fields)
    assert second.content[0].text == "Sunny."
    assert second.usage.cache_read_input_tokens > first.usage.input_tokens
    assert server.runner.prompts[1].count("sun") == bool(content)
    assert "<|im_start|>user\nand now?" in server.runner.prompts[1]


def test_a_call_that_the_limit_cuts_keeps_what_is_complete(
    server: ScriptedServer, client: anthropic.Anthropic
) -> None:
    server.script(CALL)
    message = client.messages.create(
        model=MODEL, max_tokens=CALL.index("Paris") + 2, messages=HELLO, tools=[WEATHER]
    )
    assert message.stop_reason == "max_tokens"
    (block,) = message.content
    assert block.type == "tool_use"
    assert "Paris".startswith(block.input.get("city", ""))


def test_one_call_at_most_if_parallel_use_is_disabled(
    server: ScriptedServer, client: anthropic.Anthropic
) -> None:
    server.script(CALL + CALL)
    message = client.messages.create(
        model=MODEL,
        max_tokens=512,
        messages=HELLO,
        tools=[WEATHER],
        tool_choice={"type": "auto", "disable_parallel_tool_use": True},
    )
    assert [block.type for block in message.content] == ["tool_use"]


def test_no_call_is_parsed_if_none_is_allowed(
    server: ScriptedServer, client: anthropic.Anthropic
) -> None:
    server.script(CALL)
    message = client.messages.create(
        model=MODEL, max_tokens=512, messages=HELLO, tools=[WEATHER], tool_choice={"type": "none"}
    )
    assert message.content[0].text == CALL
    assert message.stop_reason == "end_turn"
