"""Requests 30 to 37: the Responses API."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from tests.serve.serve_requests import error_of
from tests.serve.wire.wire_requests import CITY, WEATHER, call, ok, stream
from tests.support.scripted_runner import MODEL, ScriptedServer

RESPONSES = "/v1/responses"
TOOL = {"type": "function", **WEATHER}


def test_30_a_text(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.script("Paris.")
    response = client.responses.create(
        model=MODEL, input="Capital?", top_p=0.5, metadata={"a": "b"}
    )
    assert response.id.startswith("resp_")
    assert response.status == "completed"
    (item,) = response.output
    (part,) = item.content
    assert (item.type, part.type, part.text) == ("message", "output_text", "Paris.")
    assert part.annotations == []
    assert response.usage.input_tokens_details.cached_tokens == 0
    assert (response.top_p, response.metadata, response.tools) == (0.5, {"a": "b"}, [])


def test_31_a_streamed_text(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.script("Paris.", "Paris.")
    for limit, end in ((None, "completed"), (3, "incomplete")):
        asked = {"model": MODEL, "input": "Capital?", "max_output_tokens": limit}
        with client.responses.create(**asked, stream=True) as events:
            events = list(events)
        kinds = [event.type.removeprefix("response.") for event in events]
        deltas = [event for event in events if event.type == "response.output_text.delta"]
        opening = ["created", "in_progress", "output_item.added", "content_part.added"]
        closing = ["output_text.done", "content_part.done", "output_item.done", end]
        assert kinds == [*opening, *["output_text.delta"] * len(deltas), *closing]
        assert [event.sequence_number for event in events] == list(range(len(events)))


def test_31_a_stream_that_fails(
    server: ScriptedServer, client: openai.OpenAI, break_after: Callable[[int], threading.Event]
) -> None:
    server.script("Paris.")
    may_fail = break_after(3)
    kinds = []
    with client.responses.create(model=MODEL, input="Capital?", stream=True) as events:
        for event in events:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                may_fail.set()
    assert kinds[-1] == "response.failed"
    assert event.response.status == "failed"
    assert event.response.error.message


def test_32_the_first_request_of_codex(server: ScriptedServer, http: httpx.Client) -> None:
    server.script("Hi.")
    body = {
        "instructions": "You code.",
        "input": [
            {
                "type": "message",
                "role": role,
                "content": [{"type": "input_text", "text": text}],
            }
            for role, text in (("developer", "Be brief."), ("user", "Say hi"))
        ],
        "tools": [
            {"type": "function", "name": "exec_command", "parameters": {}, "strict": False},
            {"type": "namespace", "name": "agents"},
            {"type": "web_search"},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "01a2",
        "client_metadata": {"session_id": "01a2"},
        "text": {"verbosity": "low"},
    }
    events = stream(http, RESPONSES, **body)
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["prompt_cache_key"] == "01a2"


def test_33_tools_of_other_types(
    server: ScriptedServer, client: openai.OpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    spawn = {"type": "function", "name": "spawn", "parameters": CITY}
    tools: Any = [
        {"type": "web_search"},
        {"type": "local_shell"},
        {"type": "namespace", "name": "agents", "description": "Other agents", "tools": [spawn]},
        TOOL,
    ]
    server.script(call("Paris", "agents__spawn") + call("Paris"))
    with caplog.at_level(logging.INFO, "kvflow_jax.serve"):
        response = client.responses.create(model=MODEL, input="Weather?", tools=tools)
    of_namespace, plain = response.output
    assert (of_namespace.namespace, of_namespace.name) == ("agents", "spawn")
    assert plain.name == "get_weather"
    (line,) = [one for one in caplog.messages if "web_search" in one]
    assert "local_shell" in line
    assert "web_search" not in server.runner.prompts[0]
    # The call of the namespace, and one of a namespace that is gone.
    made = {"type": "function_call", "arguments": '{"city": "Paris"}', "name": "spawn"}
    items: Any = [
        {"role": "user", "content": "Weather?"},
        {**made, "namespace": "agents", "call_id": "1"},
        {**made, "namespace": "gone", "call_id": "2"},
    ]
    server.script("a")
    client.responses.create(model=MODEL, input=items, tools=tools)
    assert call("Paris", "agents__spawn") in server.runner.prompts[0]
    assert call("Paris", "gone__spawn") in server.runner.prompts[0]


def test_34_a_streamed_call(server: ScriptedServer, client: openai.OpenAI) -> None:
    server.script(call("Paris"))
    asked = {"model": MODEL, "input": "Weather?", "tools": [TOOL]}
    with client.responses.create(**asked, stream=True) as events:
        of_item = [event for event in events if hasattr(event, "output_index")]
    first, *deltas, done, last = of_item
    kinds = [event.type.removeprefix("response.") for event in (first, done, last)]
    assert kinds == ["output_item.added", "function_call_arguments.done", "output_item.done"]
    assert {event.type for event in deltas} == {"response.function_call_arguments.delta"}
    assert "".join(event.delta for event in deltas) == done.arguments == '{"city": "Paris"}'
    assert last.item.call_id == first.item.call_id


def test_35_calls_results_and_reasoning_of_the_input(
    server: ScriptedServer, http: httpx.Client
) -> None:
    server.script("Sunny.")
    made = {"type": "function_call", "name": "get_weather", "arguments": '{"city": "Paris"}'}
    items = [
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
        {**made, "call_id": "1", "id": "fc_1", "status": "completed"},
        {**made, "call_id": "2", "arguments": "not {json"},
        {"type": "function_call_output", "call_id": "1", "output": "sun"},
        {
            "type": "function_call_output",
            "call_id": "2",
            "output": [{"type": "input_text", "text": "rain"}],
        },
    ]
    ok(http.post(RESPONSES, json={"input": items, "tools": [TOOL]}))
    (prompt,) = server.runner.prompts
    assert f"assistant\n{call('Paris')}" in prompt
    assert "sun\n</tool_response>" in prompt
    assert "rain\n</tool_response>" in prompt


def test_36_a_json_schema_and_a_limit(server: ScriptedServer, http: httpx.Client) -> None:
    server.script('{"city": "Paris"}', "a" * 20)
    text = {"format": {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}}
    response = ok(http.post(RESPONSES, json={"input": "Capital?", "text": text}))
    jsonschema.validate(json.loads(response["output"][0]["content"][0]["text"]), CITY)
    response = ok(http.post(RESPONSES, json={"input": "Capital?", "max_output_tokens": 16}))
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    text["format"]["schema"] = {"not": {}}
    error = error_of(http.post(RESPONSES, json={"input": "Capital?", "text": text}), 400)
    assert "not" in error["message"]


def test_37_an_earlier_response(http: httpx.Client) -> None:
    error = error_of(http.post(RESPONSES, json={"input": "a", "previous_response_id": "r"}), 400)
    assert (error["code"], error["param"]) == (
        "previous_response_not_found",
        "previous_response_id",
    )
