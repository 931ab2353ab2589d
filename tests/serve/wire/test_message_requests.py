"""Requests 38 to 41: the Messages API."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import anthropic
import httpx
import pytest

from tests.serve.wire.wire_requests import CITY, call, ok, stream
from tests.support.scripted_runner import MODEL, ScriptedServer

MESSAGES = "/v1/messages"
USER = [{"role": "user", "content": "Weather in Paris?"}]
TOOL = {"name": "get_weather", "description": "Weather of a city", "input_schema": CITY}
MARK = {"cache_control": {"type": "ephemeral"}}


def test_38_blocks_usage_and_reasons(server: ScriptedServer, claude: anthropic.Anthropic) -> None:
    system = [{"type": "text", "text": "Be brief. " * 20, **MARK}]
    asked: dict[str, Any] = {"model": MODEL, "system": system, "messages": USER, "tools": [TOOL]}
    server.script(f"I look.{call('Paris')}", "Sunny.", "Sunny, warm.", "a" * 20)
    called = claude.messages.create(**asked, max_tokens=256)
    text, use = called.content
    assert (text.text, use.name, use.input) == ("I look.", "get_weather", {"city": "Paris"})
    ended = claude.messages.create(**asked, max_tokens=256)
    stopped = claude.messages.create(**asked, max_tokens=256, stop_sequences=[","])
    cut = claude.messages.create(**asked, max_tokens=8)
    answers = (called, ended, stopped, cut)
    reasons = ["tool_use", "end_turn", "stop_sequence", "max_tokens"]
    assert [answer.stop_reason for answer in answers] == reasons
    assert stopped.stop_sequence == ","
    num_prompt = called.usage.input_tokens
    assert called.usage.cache_read_input_tokens == 0
    assert ended.usage.cache_read_input_tokens > 0
    assert ended.usage.input_tokens + ended.usage.cache_read_input_tokens == num_prompt


def test_39_streamed_blocks(
    server: ScriptedServer,
    http: httpx.Client,
    claude: anthropic.Anthropic,
    break_after: Callable[[int], threading.Event],
) -> None:
    answer = f"I look.{call('Paris')}"
    server.script(answer, answer, "Sunny.")
    asked: dict[str, Any] = {"max_tokens": 256, "messages": USER, "tools": [TOOL]}
    kinds = [
        event.get("delta", {}).get("type", event["type"])
        for event in stream(http, MESSAGES, **asked)
    ]
    assert [kind for i, kind in enumerate(kinds) if kind not in kinds[i - 1 : i]] == [
        "message_start",
        "content_block_start",
        "ping",
        "text_delta",
        "content_block_stop",
        "content_block_start",
        "input_json_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    with claude.messages.stream(model=MODEL, **asked) as events:
        message = events.get_final_message()
    assert [block.type for block in message.content] == ["text", "tool_use"]
    assert message.content[1].input == {"city": "Paris"}
    may_fail = break_after(3)
    begun = claude.messages.create(model=MODEL, stream=True, **asked)
    with begun as events, pytest.raises(anthropic.APIStatusError):
        read(events, may_fail)


def read(events: Iterable[anthropic.types.RawMessageStreamEvent], begun: threading.Event) -> None:
    for event in events:
        if event.type == "content_block_delta":
            begun.set()


def test_40_tools_and_results(server: ScriptedServer, http: httpx.Client) -> None:
    hosted = {"type": "web_search_20250305", "name": "web_search"}
    use = {"type": "tool_use", "name": "get_weather", "input": {"city": "Paris"}}
    messages = [
        *USER,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": " "},
                {**use, "id": "1"},
                {**use, "id": "2"},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "sun"},
                {
                    "type": "tool_result",
                    "tool_use_id": "2",
                    "is_error": True,
                    "content": [{"type": "text", "text": "no such city", **MARK}],
                },
            ],
        },
    ]
    server.script("Sunny.", "Sunny.")
    for choice in ("auto", "none"):
        asked = {"max_tokens": 256, "messages": messages, "tools": [TOOL, hosted]}
        ok(http.post(MESSAGES, json={**asked, "tool_choice": {"type": choice}}))
    for prompt in server.runner.prompts:
        assert "web_search" not in prompt
        assert "cache_control" not in prompt
        assert prompt.count(f"{call('Paris')}") == 2
        assert "sun\n</tool_response>\n<tool_response>\nError: no such city" in prompt


def test_41_the_count_of_tokens(server: ScriptedServer, claude: anthropic.Anthropic) -> None:
    server.script("Sunny.")
    asked: dict[str, Any] = {"model": MODEL, "messages": USER, "tools": [TOOL], "system": "Count."}
    count = claude.messages.count_tokens(**asked).input_tokens
    usage = claude.messages.create(**asked, max_tokens=64).usage
    assert count == usage.input_tokens + usage.cache_read_input_tokens
    long = [{"role": "user", "content": "a" * 9000}]
    assert claude.messages.count_tokens(model=MODEL, messages=long).input_tokens > 9000
    with pytest.raises(anthropic.BadRequestError, match=r"is too long: \d+ tokens > 8191 maximum"):
        claude.messages.create(model=MODEL, max_tokens=64, messages=long)
