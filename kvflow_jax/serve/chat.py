"""``/v1/chat/completions``: its tools, and the format of its answers."""

from __future__ import annotations

import time
import uuid
from typing import Any

from kvflow_jax.reasoning.history import FIELDS as REASONING_FIELDS
from kvflow_jax.serve.chat_tools import (
    AnswerParser,
    ChatTools,
    ModelTools,
    read_tool_choice,
)
from kvflow_jax.serve.generation import ChoiceDelta
from kvflow_jax.serve.logprobs import LogprobWriter
from kvflow_jax.serve.schemas import ChatRequest
from kvflow_jax.tools.call_events import ArgumentsDelta, CallBegin, CallEvent, TextDelta
from kvflow_jax.tools.tool import read_tools


class ChatFormat:
    """The response objects of one chat completion.

    Args:
        tools: their calls are parsed, if calls are allowed.
        echo: text to repeat before each answer.
    """

    def __init__(
        self,
        model_name: str,
        body: ChatRequest,
        writer: LogprobWriter,
        tools: ChatTools,
        echo: str = "",
    ) -> None:
        self._echo = echo
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._wants_logprobs = bool(body.logprobs)
        self._returns_token_ids = bool(body.return_token_ids)
        self._writer = writer
        self._tools = tools
        self._parser = AnswerParser(tools)
        self._head = {
            "id": self.id,
            "created": int(time.time()),
            "model": model_name,
        }

    def first_chunk(self, delta: ChoiceDelta) -> dict[str, Any]:
        chunk = self._chunk(delta.index, {"role": "assistant", "content": self._echo})
        return chunk | self._prompt_token_ids(delta)

    def chunks(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        events, finish = self._parser.parse(delta)
        messages = [_reasoning_fields(delta.reasoning)] if delta.reasoning else []
        messages += [self._message_delta(event) for event in events]
        # A call's last piece and the finish reason come in two chunks, as from OpenAI.
        ends_apart = finish is not None and (not messages or "tool_calls" in messages[-1])
        has_token_ids = self._returns_token_ids and bool(delta.token_ids)
        has_details = has_token_ids or bool(delta.logprobs or delta.prompt_logprobs)
        if ends_apart or (not messages and has_details):
            messages.append({})
        if not messages:
            return []
        chunks = [self._chunk(delta.index, message) for message in messages]
        first, last = chunks[0]["choices"][0], chunks[-1]["choices"][0]
        first["logprobs"] = self._logprobs(delta)
        first |= self._prompt_logprobs(delta) | self._token_ids(delta)
        if finish is not None:
            last |= {"finish_reason": finish, "stop_reason": delta.stop_reason}
        return chunks

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def full(self, choices: list[ChoiceDelta], usage: dict[str, Any]) -> dict[str, Any]:
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": choice.index,
                    **self._message_and_finish(choice),
                    "logprobs": self._logprobs(choice),
                    "stop_reason": choice.stop_reason,
                    **self._token_ids(choice),
                }
                for choice in choices
            ],
            "prompt_logprobs": None,
            **self._prompt_logprobs(choices[0]),
            **self._prompt_token_ids(choices[0]),
            "usage": usage,
        }

    def _message_and_finish(self, choice: ChoiceDelta) -> dict[str, Any]:
        """Return the message of a whole choice, and why it ended."""
        events, finish = self._parser.parse(choice)
        text, calls = self._echo, list[dict[str, Any]]()
        for event in events:
            match event:
                case TextDelta():
                    text += event.text
                case CallBegin():
                    calls.append(self._call(event))
                case ArgumentsDelta():
                    calls[-1]["function"]["arguments"] += event.text
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls or choice.reasoning:
            message["content"] = text or None
        if calls:
            message["tool_calls"] = calls
        if choice.reasoning:
            message |= _reasoning_fields(choice.reasoning)
        return {"message": message, "finish_reason": finish}

    def _message_delta(self, event: CallEvent) -> dict[str, Any]:
        match event:
            case TextDelta():
                return {"content": event.text}
            case CallBegin():
                return {"tool_calls": [{"index": event.index, **self._call(event)}]}
            case ArgumentsDelta():
                function = {"arguments": event.text}
                return {"tool_calls": [{"index": event.index, "function": function}]}

    def _call(self, event: CallBegin) -> dict[str, Any]:
        function = {"name": event.name, "arguments": ""}
        return {"id": self._tools.new_call_id(), "type": "function", "function": function}

    def _chunk(self, index: int, message: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": index, "delta": message, "logprobs": None, "finish_reason": None}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, delta: ChoiceDelta) -> dict[str, Any] | None:
        return self._writer.chat(delta.logprobs) if self._wants_logprobs else None

    def _prompt_logprobs(self, delta: ChoiceDelta) -> dict[str, Any]:
        if not delta.prompt_logprobs:
            return {}
        return {"prompt_logprobs": self._writer.prompt(delta.prompt_logprobs)}

    def _token_ids(self, delta: ChoiceDelta) -> dict[str, Any]:
        return {"token_ids": delta.token_ids} if self._returns_token_ids else {}

    def _prompt_token_ids(self, delta: ChoiceDelta) -> dict[str, Any]:
        if not self._returns_token_ids or delta.prompt_ids is None:
            return {}
        return {"prompt_token_ids": delta.prompt_ids.tolist()}


def read_chat_tools(body: ChatRequest, model: ModelTools) -> ChatTools:
    """Return the tools of a chat and how its model may call them.

    Raises:
        InvalidRequestError: names the invalid field.
    """
    tools = read_tools(body.tools)
    choice = read_tool_choice(body.tool_choice, tools)
    is_parallel = body.parallel_tool_calls
    if is_parallel is None:
        # A model that was not trained to call repeats the call that it must make.
        is_parallel = model.knows_tools or not choice.is_required
    return ChatTools(model, tools, choice, is_parallel)


def echo_text(body: ChatRequest, messages: list[dict[str, Any]]) -> str:
    """Return what ``echo`` repeats before an answer: a last message of the assistant."""
    is_echoed = body.echo and messages[-1]["role"] == "assistant"
    return messages[-1]["content"] if is_echoed else ""


def _reasoning_fields(text: str) -> dict[str, Any]:
    """Return a reasoning under both names by which clients know it."""
    return dict.fromkeys(REASONING_FIELDS, text)
