"""One answer in each API and form is read the same."""

from __future__ import annotations

import httpx
import pytest

from tests.agents.answers import read_answer
from tests.support.scripted_runner import MODEL, scripted_server

CALL = '<tool_call>\n{"name": "read", "arguments": {"path": "a"}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}}
MESSAGES = [{"role": "user", "content": "hi"}]
BODIES = {
    "/v1/chat/completions": {
        "messages": MESSAGES,
        "tools": [{"type": "function", "function": {"name": "read", "parameters": SCHEMA}}],
    },
    "/v1/responses": {
        "input": "hi",
        "tools": [{"type": "function", "name": "read", "parameters": SCHEMA}],
    },
    "/v1/messages": {
        "max_tokens": 512,
        "messages": MESSAGES,
        "tools": [{"name": "read", "input_schema": SCHEMA}],
    },
}
ENDS = {"/v1/chat/completions": "tool_calls", "/v1/responses": "completed"}


@pytest.fixture(scope="module")
def http():
    with scripted_server() as server:
        server.runner.answer = lambda prompt: f"Let me see.{CALL}"
        with httpx.Client(base_url=server.url, timeout=60) as http:
            yield http


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
def test_text_calls_end_and_usage_are_read(http, path, stream):
    body = {"model": MODEL, "stream": stream, **BODIES[path]}
    if stream and "completions" in path:
        body["stream_options"] = {"include_usage": True}
    answer = http.post(path, json=body)
    read = read_answer(answer.headers["content-type"], answer.content)
    assert read["text"].strip() == "Let me see."
    assert read["calls"] == [["read", {"path": "a"}]]
    assert read["end"] == ENDS.get(path, "tool_use")
    assert read["prompt"] > 100
    assert read["cached"] is not None


def test_other_answers_are_their_json(http):
    models = http.get("/v1/models")
    assert read_answer(models.headers["content-type"], models.content) == models.json()
    missing = http.get("/v1/nowhere")
    assert read_answer(missing.headers["content-type"], missing.content) == missing.json()
