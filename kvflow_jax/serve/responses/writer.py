"""Answers of ``/v1/responses``: one object, or its stream of events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from kvflow_jax.requests.outputs import FinishReason
from kvflow_jax.serve.chat_tools import AnswerParser, ChatTools
from kvflow_jax.serve.errors import ApiError, aborted_by_caller
from kvflow_jax.serve.generation import ChoiceDelta, Usage
from kvflow_jax.serve.logprobs import LogprobWriter
from kvflow_jax.serve.responses.output_items import Event, OutputItems
from kvflow_jax.serve.responses.response import ResponseObject
from kvflow_jax.serve.responses.tools import ToolNames
from kvflow_jax.serve.stream import DONE, KEEP_ALIVE, sse_event
from kvflow_jax.tools.call_events import ArgumentsDelta, CallBegin, CallEvent, TextDelta


class ResponseWriter:
    """Writes the only choice of a generation. Implements ``StreamWriter``.

    Args:
        tools: their calls are parsed, if calls are allowed.
        names: under which the client sent the tools.
        logprobs: writes logprobs; None: they were not asked for.
    """

    def __init__(
        self,
        response: ResponseObject,
        tools: ChatTools,
        names: ToolNames,
        logprobs: LogprobWriter | None,
    ) -> None:
        self._response = response
        self._parser = AnswerParser(tools)
        self._items = OutputItems(response.output, names, tools.new_call_id)
        self._logprobs = logprobs
        self._unsent_logprobs: list[dict[str, Any]] = []
        self._num_dropped = 0  # of the logprobs
        self._is_behind_call = False  # no text since the last call
        self._num_events = 0
        self._is_cut = False

    def full(self, choice: ChoiceDelta, usage: Usage) -> dict[str, Any]:
        """Return the response of a request that does not stream."""
        self._read(choice)
        return self._response.ended(usage, is_cut=self._is_cut)

    def keep_alive(self) -> bytes:
        return KEEP_ALIVE

    def write(self, batch: Sequence[ChoiceDelta], usage: Usage) -> bytes:
        events = [event for delta in batch for event in self._read(delta)]
        return self._opening_events() + self._numbered(events)

    def end(self, usage: Usage) -> bytes:
        response = self._response.ended(usage, is_cut=self._is_cut)
        return self._numbered([_response_event(response["status"], response)]) + DONE

    def failure(self, error: ApiError) -> bytes:
        opening = self._opening_events()
        failed = _response_event("failed", self._response.failed(error))
        return opening + self._numbered([failed]) + DONE

    def _read(self, delta: ChoiceDelta) -> list[Event]:
        events: list[Event] = []
        if delta.reasoning:
            events += self._items.reasoning(delta.reasoning)
        for piece, logprobs in self._pieces(delta):
            self._unsent_logprobs += logprobs
            self._drop_logprobs(delta.num_reasoning_tokens)
            parsed, _ = self._parser.parse(piece)
            for event in parsed:
                events += self._read_event(event)
        if delta.finish_reason is FinishReason.ABORT:
            raise aborted_by_caller()
        if delta.finish_reason is not None:
            if self._items.is_in_message:
                events += self._items.text("", self._take_logprobs(""))
            self._is_cut = delta.finish_reason is FinishReason.LENGTH
            events += self._items.finish(is_cut=self._is_cut)
        return events

    def _pieces(self, delta: ChoiceDelta) -> Iterator[tuple[ChoiceDelta, list[dict[str, Any]]]]:
        """Yield a delta token by token, with the logprobs of each, if they were asked for.

        How outputs were merged must not change which of them are of the text.
        """
        logprobs: list[dict[str, Any]] = []
        begin = 0
        if self._logprobs is not None:
            written = self._logprobs.chat(delta.logprobs)["content"]
            for one, end in zip(written, delta.text_ends, strict=True):
                logprobs.append(one)
                if end > begin:
                    text = delta.text[begin:end]
                    yield replace(delta, text=text, finish_reason=None), logprobs
                    begin, logprobs = end, []
        yield replace(delta, text=delta.text[begin:]), logprobs

    def _read_event(self, event: CallEvent) -> list[Event]:
        match event:
            case TextDelta():
                return self._items.text(event.text, self._take_logprobs(event.text))
            case CallBegin():
                self._drop_call()
                return self._items.begin_call(event.name)
            case ArgumentsDelta():
                self._drop_call()
                return self._items.arguments(event.text)

    def _drop_call(self) -> None:
        """Drop the logprobs of a call, whose item has none."""
        self._unsent_logprobs.clear()
        self._is_behind_call = True

    def _take_logprobs(self, text: str) -> list[dict[str, Any]]:
        """Return the logprobs since the last text; text that may begin a call is pending."""
        taken, self._unsent_logprobs = self._unsent_logprobs, []
        if self._is_behind_call:
            # The tokens that ended the call come first.
            self._is_behind_call = False
            num_bytes, begin = len(text.encode()), len(taken)
            while begin and num_bytes > 0:
                begin -= 1
                num_bytes -= len(taken[begin]["bytes"] or ())
            del taken[:begin]
        return taken

    def _drop_logprobs(self, num_reasoning_tokens: int) -> None:
        """Drop those of the reasoning, whose item has none; no text is before it."""
        del self._unsent_logprobs[: num_reasoning_tokens - self._num_dropped]
        self._num_dropped = num_reasoning_tokens

    def _opening_events(self) -> bytes:
        if self._num_events:
            return b""
        response = self._response.in_progress()
        return self._numbered([_response_event(s, response) for s in ("created", "in_progress")])

    def _numbered(self, events: Sequence[Event]) -> bytes:
        written = bytearray()
        for event in events:
            event["sequence_number"] = self._num_events
            self._num_events += 1
            written += sse_event(event, event["type"])
        return bytes(written)


def _response_event(status: str, response: dict[str, Any]) -> Event:
    return {"type": f"response.{status}", "response": response}
