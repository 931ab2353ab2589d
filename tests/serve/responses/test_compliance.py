"""The seven cases of Open Responses' compliance suite, in our own words, against its schema.

A server without images passes six and refuses the seventh by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.serve.responses.open_responses import check_event, check_response
from tests.serve.serve_requests import error_of
from tests.support.scripted_runner import ScriptedServer, scripted_server

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a place",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string"}},
        "required": ["location"],
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "Oslo"}}\n</tool_call>'


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as server:
        yield server


@pytest.fixture(scope="module")
def http(server: ScriptedServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as http:
        yield http


def message(role: str, content: Any) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": content}


def respond(http: httpx.Client, *items: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a response that has the schema and is completed."""
    answer = http.post("/v1/responses", json={"model": "scripted", "input": items, **fields})
    assert answer.status_code == 200, answer.text
    response = answer.json()
    check_response(response)
    assert response["status"] == "completed"
    return response


def stream(http: httpx.Client, *items: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    """Return the events of a stream, each of which has its schema; the last is the completed."""
    body = {"model": "scripted", "input": items, "stream": True, **fields}
    lines = http.post("/v1/responses", json=body).text.splitlines()
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    events = [json.loads(one) for one in data]
    for event in events:
        check_event(event)
    assert events[-1]["type"] == "response.completed"
    return events


def test_a_text(server: ScriptedServer, http: httpx.Client) -> None:
    server.script("Hello to you")
    (item,) = respond(http, message("user", "Say hello in three words."))["output"]
    assert item["content"][0]["text"] == "Hello to you"


def test_a_streamed_text(server: ScriptedServer, http: httpx.Client) -> None:
    server.script("1 2 3 4 5")
    events = stream(http, message("user", "Count to five."))
    deltas = [one["delta"] for one in events if one["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "1 2 3 4 5"


def test_a_system_message(server: ScriptedServer, http: httpx.Client) -> None:
    server.script("Ahoy.")
    pirate = message("system", "Talk as a pirate does.")
    assert respond(http, pirate, message("user", "Say hello."))["output"]
    assert "<|im_start|>system\nTalk as a pirate does.<|im_end|>" in server.runner.prompts[0]


def test_a_call(server: ScriptedServer, http: httpx.Client) -> None:
    server.script(CALL)
    question = message("user", "What is the weather in Oslo?")
    (item,) = respond(http, question, tools=[WEATHER])["output"]
    assert item["type"] == "function_call"
    assert json.loads(item["arguments"]) == {"location": "Oslo"}


def test_a_streamed_call(server: ScriptedServer, http: httpx.Client) -> None:
    server.script(CALL)
    question = message("user", "What is the weather in Oslo?")
    events = stream(http, question, tools=[WEATHER])
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert {"function_call_arguments.delta", "function_call_arguments.done"} <= set(kinds)
    for kind in ("output_item.added", "output_item.done"):
        assert events[kinds.index(kind)]["item"]["type"] == "function_call"


def test_an_image_is_refused_by_name(http: httpx.Client) -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,"}
    parts = [{"type": "input_text", "text": "What is this?"}, image]
    answer = http.post("/v1/responses", json={"input": [message("user", parts)]})
    error = error_of(answer, 400)
    assert error["param"] == "input[0].content[1]"
    assert "input_image" in error["message"]


def test_several_turns(server: ScriptedServer, http: httpx.Client) -> None:
    server.script("Alice.")
    turns = [message("user", "I am Alice."), message("assistant", "Hello, Alice.")]
    assert respond(http, *turns, message("user", "Who am I?"))["output"]
    assert "<|im_start|>assistant\nHello, Alice.<|im_end|>" in server.runner.prompts[0]


@pytest.mark.parametrize(
    "fields",
    [
        {"max_output_tokens": 20, "temperature": 0.5, "metadata": {"a": "b"}, "store": True},
        {"tools": [WEATHER], "tool_choice": "none", "parallel_tool_calls": False},
        {"tools": [{"type": "function", "name": "bare"}]},
        {"text": {"format": {"type": "json_object"}, "verbosity": "low"}},
        {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"const": {}}}}},
        {"reasoning": {"effort": "low"}, "prompt_cache_key": "k", "safety_identifier": "s"},
        {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    ],
)
def test_what_a_request_asks_for_is_echoed_in_the_schema(
    server: ScriptedServer, http: httpx.Client, fields: dict[str, Any]
) -> None:
    server.script("{}", "{}")
    respond(http, message("user", "hi"), **fields)
    stream(http, message("user", "hi"), **fields)
