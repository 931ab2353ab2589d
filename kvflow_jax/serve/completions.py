"""``/v1/completions``: one prompt or many, as text or token ids."""

from __future__ import annotations

import time
import uuid
from typing import Any

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.serve.contracts import Tokenizer
from kvflow_jax.serve.generation import News
from kvflow_jax.serve.stream import finish_name

Prompt = str | list[int]


class CompletionFormat:
    """Objects of one text completion; choice ``i`` answers prompt ``i``."""

    def __init__(self, model_name: str) -> None:
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model_name,
        }

    def opening(self, index: int) -> None:
        return None

    def chunk(self, news: News) -> dict[str, Any]:
        return {**self._head, "choices": [_choice(news)]}

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": usage}

    def whole(self, choices: list[News], usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "choices": [_choice(choice) for choice in choices], "usage": usage}


def read_prompts(prompt: Any) -> list[Prompt]:
    """A string, a list of strings, a list of token ids, or a list of such lists, as a list.

    Raises:
        InvalidRequestError: anything else.
    """
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, str) for item in prompt):
            return list(prompt)
        if _are_token_ids(prompt):
            return [prompt]
        if all(isinstance(item, list) and _are_token_ids(item) for item in prompt):
            return list(prompt)
    raise InvalidRequestError(
        "prompt must be a string, a list of strings, a list of token ids, or a list of lists of "
        "token ids, and not an empty list",
        param="prompt",
    )


def token_prompts(prompts: list[Prompt]) -> list[list[int]] | None:
    """The prompts if all are token ids already, else None."""
    given = [prompt for prompt in prompts if not isinstance(prompt, str)]
    return given if len(given) == len(prompts) else None


def encode_prompts(tokenizer: Tokenizer, prompts: list[Prompt]) -> list[list[int]]:
    """Prompt ids of each prompt. Runs on the tokenizer's threads."""
    return [tokenizer.encode(p) if isinstance(p, str) else p for p in prompts]


def _are_token_ids(items: list[Any]) -> bool:
    return all(type(item) is int for item in items)  # bool is an int to isinstance


def _choice(news: News) -> dict[str, Any]:
    return {
        "index": news.index,
        "text": news.text,
        "logprobs": None,
        "finish_reason": finish_name(news.finish_reason),
    }
