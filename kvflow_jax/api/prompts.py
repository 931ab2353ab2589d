"""Prompts and conversations of the Python API as requests of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard, cast

import numpy as np

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.models.tokenizer import Tokenizer
from kvflow_jax.requests.request_spec import RequestSpec, check_hints
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.workflow.fixed_prefix import chat_prefix_len
from kvflow_jax.workflow.hints import Hints

Prompt = str | Sequence[int]  # text, or token ids
Message = Mapping[str, Any]  # {"role": ..., "content": ...}
Conversation = Sequence[Message]


class PromptEncoder:
    """Makes requests with a model's tokenizer, or of token ids only if the model has none.

    Its methods raise InvalidRequestError if an argument is invalid.

    Args:
        recognises_agents: whether agents are recognised by their system messages where hints do not
            name them.
    """

    def __init__(self, tokenizer: Tokenizer | None, *, recognises_agents: bool = False) -> None:
        self._tokenizer, self._recognises_agents = tokenizer, recognises_agents

    def text(self, prompt: Prompt, params: SamplingParams, hints: Hints | None) -> RequestSpec:
        """Return the request that continues a text, or token ids as they are."""
        if isinstance(prompt, str):
            prompt = self._require_tokenizer("prompt").encode(prompt)
        return RequestSpec(prompt, params, hints=hints)

    def chat(
        self, messages: Conversation, params: SamplingParams, hints: Hints | None
    ) -> RequestSpec:
        """Return the request that answers a conversation, by the model's chat template.

        Control tokens that its texts spell stay text; see ``ControlTokens``.

        If the hints name an agent but not the length of its fixed prefix, the fixed prefix is the
        leading system messages.
        """
        check_hints(hints)
        tokenizer = self._require_tokenizer("messages")
        if not messages:
            raise InvalidRequestError("a conversation needs at least one message", "messages")
        messages = tokenizer.control_tokens.mark_messages(messages)
        prompt = tokenizer.apply_chat_template(messages)
        num_system = None
        if hints is None or hints.agent_id is None:
            if self._recognises_agents:
                num_system = chat_prefix_len(tokenizer, messages, prompt)
        elif hints.num_fixed is None:
            num_fixed = chat_prefix_len(tokenizer, messages, prompt)
            hints = hints.with_fixed(num_fixed, len(prompt))
        return RequestSpec(prompt, params, num_system=num_system, hints=hints)

    def _require_tokenizer(self, param: str) -> Tokenizer:
        if self._tokenizer is None:
            raise InvalidRequestError("this model has no tokenizer: pass token ids", param)
        return self._tokenizer


def list_prompts(prompts: Prompt | Sequence[Prompt]) -> tuple[list[Prompt], bool]:
    """Return the prompts as a list, and whether it was one prompt, not a list of prompts.

    Raises:
        InvalidRequestError: it is neither.
    """
    if is_single_prompt(prompts):
        return [prompts], True
    if not isinstance(prompts, Sequence):
        raise InvalidRequestError("prompts must be text, token ids, or a list of those", "prompts")
    return list(cast("Sequence[Prompt]", prompts)), False


def list_conversations(
    messages: Conversation | Sequence[Conversation],
) -> tuple[list[Conversation], bool]:
    """Return the conversations as a list, and whether it was one conversation.

    Raises:
        InvalidRequestError: ``messages`` is not a list.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise InvalidRequestError(
            'messages must be a list like [{"role": "user", "content": "..."}]', "messages"
        )
    if not messages or isinstance(messages[0], Mapping):
        return [cast("Conversation", messages)], True
    return list(cast("Sequence[Conversation]", messages)), False


def is_single_prompt(prompts: Prompt | Sequence[Prompt]) -> TypeGuard[Prompt]:
    """True if ``prompts`` is one prompt, not a list of prompts."""
    if isinstance(prompts, str | np.ndarray):
        return True
    is_list = isinstance(prompts, Sequence) and len(prompts) > 0
    return is_list and isinstance(prompts[0], int | np.integer)
