"""Requests that tests of several modules send, and checks of their answers."""

from __future__ import annotations

import json
from typing import Any

import httpx

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hi"}]
SYSTEM_AND_USER = [{"role": "system", "content": "You plan."}, {"role": "user", "content": "hi"}]
SYSTEM_PROMPT = "<system>You plan."
PLANNER = {"workflow_id": "w", "agent_id": "planner"}


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """Return the error of an answer, after a check of its status and of OpenAI's format."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


def chat_with_hints(http: httpx.Client, hints: Any, **fields: Any) -> dict[str, Any]:
    """Return the answer to a chat of a system and a user message with ``agent_hints``."""
    body = {"messages": SYSTEM_AND_USER, "agent_hints": hints, **fields}
    answer = http.post(CHAT, json=body)
    answer.raise_for_status()
    return answer.json()


def raw_completion_request(prompt: str | list[str], stream: bool) -> bytes:
    """Return the bytes of an HTTP request to ``/v1/completions``."""
    body = json.dumps({"prompt": prompt, "stream": stream}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
