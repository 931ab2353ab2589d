"""What the tests of the numbered requests send, and how they read it."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.serve.serve_requests import CHAT
from tests.support.scripted_runner import MODEL

USER = [{"role": "user", "content": "Weather in Paris?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"name": "get_weather", "description": "Weather of a city", "parameters": CITY}
TOOLS = [
    {"type": "function", "function": WEATHER},
    {"type": "function", "function": {**WEATHER, "name": "get_time"}},
]


def call(city: str, name: str = "get_weather") -> str:
    """Return a call as a model of Hermes' syntax writes it."""
    arguments = json.dumps({"city": city})
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def ok(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def chat(http: httpx.Client, messages: Any = USER, **fields: Any) -> Any:
    """Return the choice of a chat that must succeed."""
    body = {"model": MODEL, "messages": messages, **fields}
    return ok(http.post(CHAT, json=body))["choices"][0]


def stream(http: httpx.Client, path: str, **body: Any) -> list[Any]:
    """Return the JSON of every event of a stream that must succeed; ``[DONE]`` is left out."""
    answer = http.post(path, json={"model": MODEL, "stream": True, **body})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.split("\n") if line.startswith("data: ")]
    data = [line.removeprefix("data: ") for line in lines]
    return [json.loads(one) for one in data if one != "[DONE]"]


def chunks(http: httpx.Client, messages: Any = USER, **fields: Any) -> list[Any]:
    """Return the chunks of a streamed chat that must succeed."""
    return stream(http, CHAT, messages=messages, **fields)


def text_of(chunks: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content") or "" for one in chunks for choice in one["choices"]
    )


def call_deltas(chunks: list[Any]) -> list[Any]:
    return [
        delta
        for one in chunks
        for choice in one["choices"]
        for delta in choice["delta"].get("tool_calls") or ()
    ]


def finish_of(chunks: list[Any]) -> str:
    """Return why the only choice ended, which its last chunk says and no other."""
    *others, last = [one["choices"][0]["finish_reason"] for one in chunks if one["choices"]]
    assert others == [None] * len(others)
    return str(last)
