"""What an answer of the server says, in whichever API and form it came."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def read_answer(content_type: str, body: bytes) -> Any:
    """Return ``{"text", "calls", "end", "prompt", "cached"}`` of a generation, else its JSON.

    ``calls`` are pairs of a name and the arguments; ``end`` is the reason that the API gave;
    ``prompt`` and ``cached`` are tokens, None where the answer has no usage.
    """
    if content_type.startswith("text/event-stream"):
        return _Answer.of_events(_events(body))
    try:
        value = json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")
    return (_Answer.of_body(value) or value) if isinstance(value, dict) else value


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    for line in body.decode().splitlines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line[6:])


class _Answer:
    def __init__(self) -> None:
        self.text, self.end = "", ""
        self.calls: dict[Any, list[str]] = {}
        self.usage: dict[str, Any] = {}

    @classmethod
    def of_events(cls, events: Iterator[dict[str, Any]]) -> dict[str, Any]:
        answer = cls()
        for event in events:
            if "choices" in event:
                answer.usage = event.get("usage") or {}
                for choice in event["choices"]:
                    answer._add_choice(choice, choice["delta"])
            elif event["type"].startswith("response."):
                # The last event of a response holds the whole of it.
                if "output" in event.get("response", {}):
                    answer = cls()
                    answer._add_response(event["response"])
            else:
                answer._add_message_event(event)
        return answer._value()

    @classmethod
    def of_body(cls, value: dict[str, Any]) -> dict[str, Any] | None:
        answer = cls()
        if "choices" in value:
            answer.usage = value.get("usage") or {}
            for choice in value["choices"]:
                answer._add_choice(choice, choice["message"])
        elif value.get("object") == "response":
            answer._add_response(value)
        elif value.get("type") == "message":
            for index, block in enumerate(value["content"]):
                answer._add_block(index, block)
            answer.end = value["stop_reason"]
            answer.usage = value["usage"]
        else:
            return None
        return answer._value()

    def _value(self) -> dict[str, Any]:
        calls = [[name, json.loads(arguments or "{}")] for name, arguments in self.calls.values()]
        usage = self.usage
        prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
        cached = details.get("cached_tokens")
        if "cache_read_input_tokens" in usage:  # Anthropic's input tokens are those beside these
            cached = usage["cache_read_input_tokens"]
            prompt += cached
        return {
            "text": self.text,
            "calls": calls,
            "end": self.end,
            "prompt": prompt,
            "cached": cached,
        }

    def _add_choice(self, choice: dict[str, Any], message: dict[str, Any]) -> None:
        self.text += message.get("content") or ""
        for position, call in enumerate(message.get("tool_calls") or ()):
            known = self.calls.setdefault(call.get("index", position), ["", ""])
            known[0] += call["function"].get("name") or ""
            known[1] += call["function"].get("arguments") or ""
        self.end = choice.get("finish_reason") or self.end

    def _add_response(self, response: dict[str, Any]) -> None:
        for index, item in enumerate(response["output"]):
            if item["type"] == "function_call":
                name = ".".join(filter(None, (item.get("namespace"), item["name"])))
                self.calls[index] = [name, item["arguments"]]
            elif item["type"] == "message":
                self.text += "".join(part["text"] for part in item["content"])
        self.end = response["status"]
        self.usage = response.get("usage") or {}

    def _add_message_event(self, event: dict[str, Any]) -> None:
        if event["type"] == "content_block_start":
            self._add_block(event["index"], event["content_block"])
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            self.text += delta.get("text", "")
            if "partial_json" in delta:
                self.calls[event["index"]][1] += delta["partial_json"]
        elif event["type"] == "message_delta":
            self.end = event["delta"]["stop_reason"]
            self.usage |= event["usage"]
        elif event["type"] == "message_start":
            self.usage |= event["message"]["usage"]

    def _add_block(self, index: int, block: dict[str, Any]) -> None:
        if block["type"] == "tool_use":
            self.calls[index] = [
                block["name"],
                json.dumps(block["input"]) if block["input"] else "",
            ]
        self.text += block.get("text", "")
