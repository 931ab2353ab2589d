"""The prompt of a chat: how its template is called, and the agent's fixed prefix in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.serve.chat_tools import ToolTemplate
from kvflow_jax.serve.schemas import ChatRequest
from kvflow_jax.workflow.fixed_prefix import ChatTemplate, chat_prefix_len
from kvflow_jax.workflow.hints import HintParser, Hints

MAX_CALLS_SHOWN = 3


class ChatPrompt(NamedTuple):
    """The prompt of a chat.

    Attributes:
        hints: with the agent's fixed prefix; None: the request has none.
        num_system: tokens of its system messages and tools, at its start; None: it has none, or
            they cannot be told from the rest.
    """

    token_ids: list[int]
    hints: Hints | None
    num_system: int | None = None


# Arguments of transformers' apply_chat_template that clients may not set.
RESERVED_KWARGS = frozenset(
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
        "sanitize_control_tokens",
        "self",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)


def read_prompt_args(body: ChatRequest, messages: list[dict[str, Any]]) -> dict[str, bool]:
    """Return how the template ends the prompt, as arguments of ``apply_chat_template``.

    Raises:
        InvalidRequestError: the last message cannot be continued.
    """
    args = {"add_special_tokens": True} if body.add_special_tokens else {}
    is_continued = body.continue_final_message
    if is_continued is None:
        is_continued = _is_prefix(messages[-1])
    if not is_continued:
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


def _is_prefix(message: dict[str, Any]) -> bool:
    """Return whether an answer begins with a last message: as DeepSeek, Mistral, Qwen mark it."""
    is_marked = message.get("prefix") is True or message.get("partial") is True
    return is_marked and message["role"] == "assistant"


def template_kwargs(body: ChatRequest) -> dict[str, Any]:
    """Return the variables that a client passes to the template, such as ``enable_thinking``.

    Raises:
        InvalidRequestError: a name is an argument of the template engine, not a variable, or a
            field of reasoning has a wrong type.
    """
    kwargs = body.chat_template_kwargs or {}
    reserved = sorted(RESERVED_KWARGS.intersection(kwargs))
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
    prefix_template: ChatTemplate | None = None,
    *,
    recognises_agents: bool = False,
) -> ChatPrompt:
    """Return the prompt of a chat, and its hints with the agent's fixed prefix.

    Runs on the tokenizer threads. The fixed prefix defaults to what the client has marked, else to
    the system messages. It is not computed for a request that names no agent; the length of the
    system messages, by which agents are recognised, is computed for no other.

    Args:
        kwargs: variables of the template.
        prompt_args: see ``read_prompt_args``.
        fixed_messages: what the client has marked; empty: nothing.
        prefix_template: the same template, for the messages of the fixed prefix; None: no other.
        recognises_agents: whether agents are recognised where requests do not name them.
    """
    # The prefix begins as the prompt does, also with the tokens that a tokenizer adds.
    added = {name: prompt_args[name] for name in ("add_special_tokens",) if name in prompt_args}

    def prefix_len(messages: Sequence[dict[str, Any]], num_messages: int | None) -> int | None:
        return chat_prefix_len(
            prefix_template or template, messages, prompt_ids, num_messages, {**added, **kwargs}
        )

    try:
        prompt_ids = template.apply_chat_template(messages, **prompt_args, **kwargs)
    except InvalidRequestError as error:
        raise _with_calls(error, messages) from error
    hints, boundary = None, None
    if hint_parser is not None:
        hints, boundary = hint_parser.parse(), hint_parser.fixed_prefix
    if hints is None or hints.agent_id is None:
        return ChatPrompt(
            prompt_ids, hints, prefix_len(messages, None) if recognises_agents else None
        )
    if boundary is not None and boundary.unit == "token":
        return ChatPrompt(prompt_ids, hints.with_fixed(boundary.end, len(prompt_ids)))
    num_messages = None if boundary is None else boundary.end
    if boundary is None and fixed_messages:
        messages, num_messages = [*fixed_messages], len(fixed_messages)
    if boundary is not None and boundary.end > len(messages):
        hints = replace(hints, is_clipped=True)
    num_fixed = prefix_len(messages, num_messages)
    return ChatPrompt(prompt_ids, hints.with_fixed(num_fixed, len(prompt_ids)))


def _with_calls(
    error: InvalidRequestError, messages: Sequence[dict[str, Any]]
) -> InvalidRequestError:
    """Return the error of a template; name the calls whose arguments are no JSON object."""
    calls = [call for message in messages for call in message.get("tool_calls", ())]
    names = [
        f"{call['function']['name']} ({call.get('id')})"
        for call in calls
        if isinstance(call["function"]["arguments"], str)
    ]
    if not names or error.param != "messages":
        return error
    shown = ", ".join(names[:MAX_CALLS_SHOWN])
    return InvalidRequestError(
        f"{error}; the arguments of these calls are no JSON object: {shown:.200}",
        error.param,
        error.code,
    )
