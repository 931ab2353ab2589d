"""``/v1/chat/completions``: messages in, messages out."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import replace
from typing import Any

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.serve.generation import ChoiceDelta
from kvflow_jax.serve.logprobs import LogprobWriter
from kvflow_jax.serve.protocols import Tokenizer
from kvflow_jax.serve.schemas import ChatRequest
from kvflow_jax.serve.stream import finish_name
from kvflow_jax.workflow.fixed_prefix import chat_prefix_len
from kvflow_jax.workflow.hints import HintReader, Hints

ROLES = ("system", "developer", "user", "assistant", "tool")

# Arguments of transformers' apply_chat_template that are not the client's to set.
_RESERVED_KWARGS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


class ChatFormat:
    """Objects of one chat completion."""

    def __init__(self, model_name: str, body: ChatRequest, writer: LogprobWriter) -> None:
        self._wants_logprobs = bool(body.logprobs)
        self._writer = writer
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model_name,
        }

    def opening(self, index: int) -> dict[str, Any]:
        return self._chunk(index, {"role": "assistant", "content": ""})

    def chunk(self, news: ChoiceDelta) -> dict[str, Any]:
        delta = {"content": news.text} if news.text else {}
        return self._chunk(news.index, delta, news)

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def whole(self, choices: list[ChoiceDelta], usage: dict[str, Any]) -> dict[str, Any]:
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [
                {
                    "index": choice.index,
                    "message": {"role": "assistant", "content": choice.text, "refusal": None},
                    "logprobs": self._logprobs(choice),
                    "finish_reason": finish_name(choice.finish_reason),
                    "stop_reason": choice.stop_reason,
                    **self._prompt_logprobs(choice),
                }
                for choice in choices
            ],
            "usage": usage,
        }

    def _chunk(
        self, index: int, delta: dict[str, Any], news: ChoiceDelta | None = None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": None,
            "finish_reason": None,
        }
        if news is not None:
            choice["logprobs"] = self._logprobs(news)
            choice["finish_reason"] = finish_name(news.finish_reason)
            choice |= self._prompt_logprobs(news)
            if news.finish_reason is not None:
                choice["stop_reason"] = news.stop_reason
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _logprobs(self, news: ChoiceDelta) -> dict[str, Any] | None:
        return self._writer.chat(news.logprobs) if self._wants_logprobs else None

    def _prompt_logprobs(self, news: ChoiceDelta) -> dict[str, Any]:
        if not news.prompt_logprobs:
            return {}
        return {"prompt_logprobs": self._writer.prompt(news.prompt_logprobs)}


def read_messages(body: ChatRequest) -> list[dict[str, Any]]:
    """Messages as chat templates expect them: text contents, ``developer`` as ``system``.

    Raises:
        InvalidRequestError: names the message and what would be right.
    """
    return [_read_message(f"messages[{i}]", message) for i, message in enumerate(body.messages)]


def template_kwargs(body: ChatRequest) -> dict[str, Any]:
    """Variables a client passes to the template, such as ``enable_thinking``.

    Raises:
        InvalidRequestError: a name that would change more than a variable.
    """
    kwargs = body.chat_template_kwargs or {}
    reserved = sorted(_RESERVED_KWARGS.intersection(kwargs))
    if reserved:
        raise InvalidRequestError(
            f"chat_template_kwargs may not set {', '.join(reserved)}",
            param="chat_template_kwargs",
        )
    return kwargs


def encode_chat(
    tokenizer: Tokenizer,
    messages: list[dict[str, Any]],
    kwargs: dict[str, Any],
    reader: HintReader | None,
) -> tuple[list[int], Hints | None]:
    """Prompt ids of a chat, and its hints with the agent's fixed prefix.

    Runs on the tokenizer's threads. What is fixed, if the caller does not say it, are the system
    messages; a caller who names no agent pays for nothing.
    """
    prompt_ids = tokenizer.apply_chat_template(messages, **kwargs)
    if reader is None:
        return prompt_ids, None
    hints, given = reader.read(), reader.fixed_prefix
    if hints.agent_id is None:
        return prompt_ids, hints
    if given is not None and given.unit == "token":
        return prompt_ids, hints.with_fixed(given.end, len(prompt_ids))
    num_messages = None if given is None else given.end
    if given is not None and given.end > len(messages):
        hints = replace(hints, is_clipped=True)
    num_fixed = chat_prefix_len(tokenizer, messages, prompt_ids, num_messages, **kwargs)
    return prompt_ids, hints.with_fixed(num_fixed, len(prompt_ids))


def _read_message(where: str, message: dict[str, Any]) -> dict[str, Any]:
    role = message.get("role")
    if role not in ROLES:
        raise InvalidRequestError(
            f"{where}.role must be one of {', '.join(ROLES)}; got {role!r}", param=f"{where}.role"
        )
    read = {name: value for name, value in message.items() if value is not None}
    # Templates know no developer; OpenAI made it the system role's successor.
    read["role"] = "system" if role == "developer" else role
    read["content"] = _read_content(f"{where}.content", message.get("content"), role)
    if read.get("tool_calls"):
        read["tool_calls"] = _read_tool_calls(f"{where}.tool_calls", read["tool_calls"])
    return read


def _read_content(where: str, content: Any, role: str) -> str:
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":  # a message of tool calls only
        return ""
    if not isinstance(content, list):
        raise InvalidRequestError(
            f'{where} must be a string or a list of parts like {{"type": "text", "text": "..."}}',
            param=where,
        )
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise InvalidRequestError(
                f"{where}[{i}] has type {kind!r}; this server supports parts of type 'text' only",
                param=f"{where}[{i}]",
            )
        if not isinstance(part.get("text"), str):
            raise InvalidRequestError(
                f"{where}[{i}].text must be a string", param=f"{where}[{i}].text"
            )
        texts.append(part["text"])
    return "\n".join(texts)  # as vLLM does for templates that take strings


def _read_tool_calls(where: str, calls: Any) -> list[dict[str, Any]]:
    """OpenAI sends ``arguments`` as JSON text; templates write JSON themselves, so parse it."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise InvalidRequestError(f"{where} must be a list of tool calls", param=where)
    read = []
    for call in calls:
        function = call.get("function")
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            function = {**function, "arguments": _parsed(function["arguments"])}
            call = {**call, "function": function}
        read.append(call)
    return read


def _parsed(arguments: str) -> Any:
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments  # a model's slip of an earlier turn: pass on what it wrote
    return parsed if isinstance(parsed, dict) else arguments
