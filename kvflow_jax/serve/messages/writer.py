"""Answers of ``/v1/messages``: one message, or its stream of events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.serve.chat_tools import AnswerParser, ChatTools
from kvflow_jax.serve.errors import ApiError, aborted_by_caller
from kvflow_jax.serve.generation import ChoiceDelta, Usage
from kvflow_jax.serve.messages.errors import error_body
from kvflow_jax.serve.messages.message import Event, MessageBuilder
from kvflow_jax.serve.stream import sse_event
from kvflow_jax.tools.call_events import ArgumentsDelta, CallBegin, TextDelta

_PING: Event = {"type": "ping"}


class MessageWriter:
    """Writes the only choice of a generation. Implements ``StreamWriter``."""

    def __init__(self, message_id: str, model_name: str, tools: ChatTools, usage: Usage) -> None:
        self._parser = AnswerParser(tools)
        self._message = MessageBuilder(message_id, model_name)
        self._start: list[Event] = [self._message.start(usage)]
        self._is_pinged = False

    def full(self, choice: ChoiceDelta, usage: Usage) -> dict[str, Any]:
        """Return the message of a request that does not stream."""
        self._read(choice)
        return self._message.full(usage)

    def keep_alive(self) -> bytes:
        self._is_pinged = True
        return _sse([*self._take_start(), _PING])

    def write(self, batch: Sequence[ChoiceDelta], usage: Usage) -> bytes:
        events = self._take_start()
        for delta in batch:
            events += self._read(delta)
        return _sse(events)

    def end(self, usage: Usage) -> bytes:
        return _sse(self._message.stop(usage))

    def failure(self, error: ApiError) -> bytes:
        return _sse([error_body(error)])

    def _read(self, delta: ChoiceDelta) -> list[Event]:
        events = self._message.thinking(delta.reasoning) if delta.reasoning else []
        parsed, _ = self._parser.parse(delta)
        for event in parsed:
            match event:
                case TextDelta():
                    events += self._message.text(event.text)
                case CallBegin():
                    events += self._message.begin_call(event.name)
                case ArgumentsDelta():
                    events += self._message.arguments(event.text)
        if delta.finish_reason is FinishReason.ABORT:
            raise aborted_by_caller()
        if delta.finish_reason is not None:
            events += self._message.finish(delta.finish_reason, delta.stop_reason)
        if events and not self._is_pinged:
            # Behind the start of the first block, where Anthropic has it.
            self._is_pinged = True
            events.insert(1, _PING)
        return events

    def _take_start(self) -> list[Event]:
        start, self._start = self._start, []
        return start


def _sse(events: Iterable[Event]) -> bytes:
    return b"".join(sse_event(event, event["type"]) for event in events)
