"""What callers of the Python API give, as the engine takes it: token ids and hints."""

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
    """One request to be."""

    prompt: Sequence[int]
    hints: Hints | None


class PromptEncoder:
    """Writes prompts with a model's tokenizer, None where it has none.

    Every method raises InvalidRequestError for what is no prompt, and for hints that are none.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def text(self, prompt: Prompt, hints: Hints | None) -> Call:
        """A prompt as it is."""
        _check_hints(hints)
        if not isinstance(prompt, str):
            return Call(prompt, hints)
        return Call(self._the_tokenizer("prompt").encode(prompt), hints)

    def chat(self, messages: Sequence[Message], hints: Hints | None) -> Call:
        """A conversation, as the model's chat template writes it.

        Where hints name an agent and not its fixed prefix, that is the system messages.
        """
        _check_hints(hints)
        tokenizer = self._the_tokenizer("messages")
        if not messages:
            raise InvalidRequestError("a conversation needs at least one message", "messages")
        prompt = tokenizer.apply_chat_template(messages)
        if hints is not None and hints.agent_id is not None and hints.num_fixed is None:
            num_fixed = chat_prefix_len(tokenizer, messages, prompt)
            hints = hints.with_fixed(num_fixed, len(prompt))
        return Call(prompt, hints)

    def _the_tokenizer(self, param: str) -> Tokenizer:
        if self._tokenizer is None:
            raise InvalidRequestError("this model has no tokenizer: give token ids", param)
        return self._tokenizer


def is_single_prompt(prompts: Prompt | Sequence[Prompt]) -> bool:
    """Whether it is a prompt, rather than a list of them."""
    if isinstance(prompts, str | np.ndarray):
        return True
    is_list = isinstance(prompts, Sequence) and len(prompts) > 0
    return is_list and isinstance(prompts[0], int | np.integer)


def _check_hints(hints: Hints | None) -> None:
    if hints is not None and not isinstance(hints, Hints):
        raise InvalidRequestError("hints must be Hints(...)", "hints")
