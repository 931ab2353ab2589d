"""Prompts and conversations of the Python API as token ids and hints for the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.models.tokenizer import Tokenizer
from kvflow_jax.workflow.fixed_prefix import chat_prefix_len
from kvflow_jax.workflow.hints import Hints

Prompt = str | Sequence[int]  # text, or token ids
Message = Mapping[str, Any]  # {"role": ..., "content": ...}


class Call(NamedTuple):
    """The prompt and hints of one request.

    Attributes:
        prompt: token ids.
    """

    prompt: Sequence[int]
    hints: Hints | None


class PromptEncoder:
    """Encodes prompts with a model's tokenizer, or only checks token ids if it has none.

    Its methods raise InvalidRequestError if the prompt or the hints are invalid.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def text(self, prompt: Prompt, hints: Hints | None) -> Call:
        """Encode a text prompt; return token ids as they are."""
        _check_hints(hints)
        if not isinstance(prompt, str):
            return Call(prompt, hints)
        return Call(self._require_tokenizer("prompt").encode(prompt), hints)

    def chat(self, messages: Sequence[Message], hints: Hints | None) -> Call:
        """Encode a conversation with the model's chat template.

        If the hints name an agent but not the length of its fixed prefix, the fixed prefix is the
        leading system messages.
        """
        _check_hints(hints)
        tokenizer = self._require_tokenizer("messages")
        if not messages:
            raise InvalidRequestError("a conversation needs at least one message", "messages")
        prompt = tokenizer.apply_chat_template(messages)
        if hints is not None and hints.agent_id is not None and hints.num_fixed is None:
            num_fixed = chat_prefix_len(tokenizer, messages, prompt)
            hints = hints.with_fixed(num_fixed, len(prompt))
        return Call(prompt, hints)

    def _require_tokenizer(self, param: str) -> Tokenizer:
        if self._tokenizer is None:
            raise InvalidRequestError("this model has no tokenizer: pass token ids", param)
        return self._tokenizer


def is_single_prompt(prompts: Prompt | Sequence[Prompt]) -> bool:
    """True if ``prompts`` is one prompt, not a list of prompts."""
    if isinstance(prompts, str | np.ndarray):
        return True
    is_list = isinstance(prompts, Sequence) and len(prompts) > 0
    return is_list and isinstance(prompts[0], int | np.integer)


def _check_hints(hints: Hints | None) -> None:
    if hints is not None and not isinstance(hints, Hints):
        raise InvalidRequestError("hints must be Hints(...)", "hints")
