"""``/v1/chat/completions``: reading of messages, format of answers."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.reasoning.history import FIELDS as REASONING_FIELDS
from kvflow_jax.serve.chat_tools import (
    AnswerParser,
    ChatTools,
    ModelTools,
    ToolTemplate,
    read_tool_choice,
)
from kvflow_jax.serve.generation import ChoiceDelta
from kvflow_jax.serve.logprobs import LogprobWriter
from kvflow_jax.serve.schemas import ChatRequest
from kvflow_jax.tools.call_events import ArgumentsDelta, CallBegin, CallEvent, TextDelta
from kvflow_jax.tools.tool import is_deeper, read_tools
from kvflow_jax.workflow.fixed_prefix import chat_prefix_len
from kvflow_jax.workflow.hints import HintParser, Hints

ROLES = ("system", "developer", "user", "assistant", "tool")

# Agents pass on parts of the Responses API, and what an assistant refused to say.
_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")

# Arguments of transformers' apply_chat_template that clients may not set.
_RESERVED_KWARGS = frozenset(
    {
        "add_generation_prompt",
        "add_special_tokens",
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


def read_messages(body: ChatRequest) -> list[dict[str, Any]]:
    """Return messages as chat templates expect them: text contents, ``developer`` as ``system``.

    Raises:
        InvalidRequestError: names the invalid message and what is accepted.
    """
    return [_read_message(f"messages[{i}]", message) for i, message in enumerate(body.messages)]


def texts_of(messages: list[dict[str, Any]], tools: ChatTools) -> list[str]:
    """Return the texts of a chat's prompt, to check their lengths before tokenization."""
    texts = [message["content"] for message in messages]
    texts += [text for message in messages for f in REASONING_FIELDS if (text := message.get(f))]
    calls = (call for message in messages for call in message.get("tool_calls") or ())
    arguments = (call["function"]["arguments"] for call in calls)
    texts += [one if isinstance(one, str) else json.dumps(one) for one in arguments]
    return texts + [tool.json for tool in tools.tools]


def read_prompt_args(body: ChatRequest, messages: list[dict[str, Any]]) -> dict[str, bool]:
    """Return how the template ends the prompt, as arguments of ``apply_chat_template``.

    Raises:
        InvalidRequestError: the last message cannot be continued.
    """
    args = {"add_special_tokens": True} if body.add_special_tokens else {}
    if not body.continue_final_message:
        return args | {"add_generation_prompt": body.add_generation_prompt is not False}
    if body.add_generation_prompt:
        raise InvalidRequestError(
            "add_generation_prompt and continue_final_message cannot both be true",
            param="continue_final_message",
        )
    if not messages[-1]["content"].strip() or messages[-1].get("tool_calls"):
        raise InvalidRequestError(
            "the last message cannot be continued: it must have text, and no tool calls",
            param="messages",
        )
    return args | {"add_generation_prompt": False, "continue_final_message": True}


def echo_text(body: ChatRequest, messages: list[dict[str, Any]]) -> str:
    """Return what ``echo`` repeats before an answer: a last message of the assistant."""
    is_echoed = body.echo and messages[-1]["role"] == "assistant"
    return messages[-1]["content"] if is_echoed else ""


def template_kwargs(body: ChatRequest) -> dict[str, Any]:
    """Return the variables that a client passes to the template, such as ``enable_thinking``.

    Raises:
        InvalidRequestError: a name is an argument of the template engine, not a variable, or a
            field of reasoning has a wrong type.
    """
    kwargs = body.chat_template_kwargs or {}
    reserved = sorted(_RESERVED_KWARGS.intersection(kwargs))
    if reserved:
        raise InvalidRequestError(
            f"chat_template_kwargs must not set {', '.join(reserved)}",
            param="chat_template_kwargs",
        )
    return {**body.reasoning_fields.template_kwargs, **kwargs}


def encode_chat(
    template: ToolTemplate,
    messages: list[dict[str, Any]],
    kwargs: dict[str, Any],
    prompt_args: dict[str, bool],
    hint_parser: HintParser | None,
    fixed_messages: Sequence[dict[str, Any]] = (),
) -> tuple[list[int], Hints | None]:
    """Return the prompt ids of a chat, and its hints with the agent's fixed prefix.

    Runs on the tokenizer threads. The fixed prefix defaults to what the client has marked, else to
    the system messages. It is not computed for a request that names no agent.

    Args:
        kwargs: variables of the template.
        prompt_args: see ``read_prompt_args``.
        fixed_messages: what the client has marked; empty: nothing.
    """
    prompt_ids = template.apply_chat_template(messages, **prompt_args, **kwargs)
    if hint_parser is None:
        return prompt_ids, None
    hints, boundary = hint_parser.parse(), hint_parser.fixed_prefix
    if hints.agent_id is None:
        return prompt_ids, hints
    if boundary is not None and boundary.unit == "token":
        return prompt_ids, hints.with_fixed(boundary.end, len(prompt_ids))
    num_messages = None if boundary is None else boundary.end
    if boundary is None and fixed_messages:
        messages, num_messages = [*fixed_messages], len(fixed_messages)
    if boundary is not None and boundary.end > len(messages):
        hints = replace(hints, is_clipped=True)
    num_fixed = chat_prefix_len(template, messages, prompt_ids, num_messages, **kwargs)
    return prompt_ids, hints.with_fixed(num_fixed, len(prompt_ids))


def _reasoning_fields(text: str) -> dict[str, Any]:
    """Return a reasoning under both names by which clients know it."""
    return dict.fromkeys(REASONING_FIELDS, text)


def _read_message(field: str, message: dict[str, Any]) -> dict[str, Any]:
    role = message.get("role")
    if role not in ROLES:
        raise InvalidRequestError(
            f"{field}.role must be one of {', '.join(ROLES)}; got {role!r}", param=f"{field}.role"
        )
    read = {name: value for name, value in message.items() if value is not None}
    # Templates lack the developer role, OpenAI's successor of the system role.
    read["role"] = "system" if role == "developer" else role
    read["content"] = _read_content(f"{field}.content", message.get("content"), role)
    for name in REASONING_FIELDS:
        if not isinstance(read.get(name, ""), str):
            raise InvalidRequestError(f"{field}.{name} must be a string", param=f"{field}.{name}")
    if read.get("tool_calls"):
        read["tool_calls"] = _read_tool_calls(f"{field}.tool_calls", read["tool_calls"])
    return read


def _read_content(field: str, content: Any, role: str) -> str:
    if isinstance(content, str):
        return content
    # A message that consists of tool calls only has no content; nor has the result of some tools.
    if content is None and role in ("assistant", "tool"):
        return ""
    if not isinstance(content, list):
        raise InvalidRequestError(
            f'{field} must be a string or a list of parts like {{"type": "text", "text": "..."}}',
            param=field,
        )
    texts = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in _TEXT_PARTS:
            raise InvalidRequestError(
                f"{field}[{i}] has type {kind!r}; only parts of type 'text' are supported",
                param=f"{field}[{i}]",
            )
        key = "refusal" if kind == "refusal" else "text"
        if not isinstance(part.get(key), str):
            raise InvalidRequestError(
                f"{field}[{i}].{key} must be a string", param=f"{field}[{i}].{key}"
            )
        texts.append(part[key])
    # As vLLM does for templates that expect strings.
    return "\n".join(texts)


def _read_tool_calls(field: str, calls: Any) -> list[dict[str, Any]]:
    """Parse the ``arguments``, which OpenAI sends as JSON text: templates write JSON themselves."""
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise InvalidRequestError(f"{field} must be a list of tool calls", param=field)
    read = []
    for i, call in enumerate(calls):
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise InvalidRequestError(
                f"{field}[{i}].function must be an object with a name",
                param=f"{field}[{i}].function",
            )
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            function = {**function, "arguments": _parse_arguments(arguments)}
        elif arguments is None or (isinstance(arguments, dict) and not is_deeper(arguments)):
            function = {**function, "arguments": arguments or {}}
        else:
            raise InvalidRequestError(
                f"{field}[{i}].function.arguments must be a string of JSON",
                param=f"{field}[{i}].function.arguments",
            )
        read.append({**call, "function": function})
    return read


def _parse_arguments(arguments: str) -> Any:
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        # Invalid JSON that a model wrote in an earlier turn is passed on unchanged, as is JSON so
        # deep that templates could not write it.
        return arguments
    is_object = isinstance(parsed, dict) and not is_deeper(parsed)
    return parsed if is_object else arguments
