"""The message that answers ``/v1/messages``, built from what the model says, and its events."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.serve.generation import Usage
from kvflow_jax.serve.stream import kvflow_body, new_id

Event = dict[str, Any]


class MessageBuilder:
    """Builds the blocks of a message, in their order.

    The methods that take output return the events that it causes.
    """

    def __init__(self, message_id: str, model_name: str) -> None:
        self._content: list[dict[str, Any]] = []
        self._is_open = False  # the last block is not complete
        self._arguments = ""  # of the last block, a call
        self._message: dict[str, Any] = {
            "id": message_id,
            "type": "message",
            "role": "assistant",
            "model": model_name,
            "content": self._content,
            "stop_reason": None,
            "stop_sequence": None,
        }

    def start(self, usage: Usage) -> Event:
        message = {**self._message, "content": [], "usage": usage_body(usage)}
        return {"type": "message_start", "message": message}

    def thinking(self, text: str) -> list[Event]:
        events: list[Event] = []
        if not self._is_in("thinking"):
            block = {"type": "thinking", "thinking": "", "signature": ""}
            events = [*self.end_block(), self._begin(block)]
        self._content[-1]["thinking"] += text
        return [*events, self._delta({"type": "thinking_delta", "thinking": text})]

    def text(self, text: str) -> list[Event]:
        events: list[Event] = []
        if not self._is_in("text"):
            events = [*self.end_block(), self._begin({"type": "text", "text": ""})]
        if text:
            self._content[-1]["text"] += text
            events.append(self._delta({"type": "text_delta", "text": text}))
        return events

    def begin_call(self, name: str) -> list[Event]:
        events = self.end_block()
        block = {"type": "tool_use", "id": new_id("toolu"), "name": name, "input": {}}
        self._arguments = ""
        return [*events, self._begin(block)]

    def arguments(self, text: str) -> list[Event]:
        """Append to the arguments of the call begun last."""
        self._arguments += text
        return [self._delta({"type": "input_json_delta", "partial_json": text})]

    def finish(self, reason: FinishReason, stop_reason: str | int | None) -> list[Event]:
        """End the message. One without blocks gets an empty text."""
        events = [] if self._content else self.text("")
        self._message |= self._stop_fields(reason, stop_reason)
        return events + self.end_block()

    def full(self, usage: Usage) -> dict[str, Any]:
        return {**self._message, "usage": usage_body(usage), "kvflow": kvflow_body(usage)}

    def stop(self, usage: Usage) -> list[Event]:
        """Return the events of the end of the stream."""
        delta = {name: self._message[name] for name in ("stop_reason", "stop_sequence")}
        counts = {"usage": usage_body(usage), "kvflow": kvflow_body(usage)}
        return [{"type": "message_delta", "delta": delta, **counts}, {"type": "message_stop"}]

    def end_block(self) -> list[Event]:
        """End the last block, if it is not complete."""
        if not self._is_open:
            return []
        block = self._content[-1]
        if block["type"] == "tool_use":
            block["input"] = _parse_arguments(self._arguments)
        events: list[Event] = []
        if block["type"] == "thinking":
            # Anthropic signs thinking, and clients wait for it.
            events.append(self._delta({"type": "signature_delta", "signature": ""}))
        self._is_open = False
        return [*events, {"type": "content_block_stop", "index": len(self._content) - 1}]

    def _is_in(self, kind: str) -> bool:
        """True if the last block is of this type and not complete."""
        return self._is_open and self._content[-1]["type"] == kind

    def _begin(self, block: dict[str, Any]) -> Event:
        self._content.append(block)
        self._is_open = True
        index = len(self._content) - 1
        return {"type": "content_block_start", "index": index, "content_block": dict(block)}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": len(self._content) - 1, "delta": delta}

    def _stop_fields(
        self, reason: FinishReason, stop_reason: str | int | None
    ) -> dict[str, str | None]:
        if reason is FinishReason.LENGTH:
            return {"stop_reason": "max_tokens"}
        sequence = stop_reason if isinstance(stop_reason, str) else None
        # First, because agents run calls for this reason alone: a stop sequence may come behind.
        if any(block["type"] == "tool_use" for block in self._content):
            return {"stop_reason": "tool_use", "stop_sequence": sequence}
        return {
            "stop_reason": "end_turn" if sequence is None else "stop_sequence",
            "stop_sequence": sequence,
        }


def usage_body(usage: Usage) -> dict[str, Any]:
    """Return Anthropic's ``usage``, whose input tokens exclude those read from the cache."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
    }


def _parse_arguments(arguments: str) -> dict[str, Any]:
    """Return a call's arguments; of a call that was cut, what is complete."""
    try:
        parsed = from_json(arguments, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
