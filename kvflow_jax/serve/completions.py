"""``/v1/completions``: one prompt or many, as text or token ids."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.serve.contracts import Tokenizer
from kvflow_jax.serve.generation import News
from kvflow_jax.serve.logprobs import LogprobWriter
from kvflow_jax.serve.schemas import CompletionRequest
from kvflow_jax.serve.stream import finish_name

Prompt = str | list[int]


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt to be said before its answers."""

    text: str
    first_token: int


class CompletionFormat:
    """Objects of one text completion; choice ``i`` answers prompt ``i // n``.

    Args:
        echoes: one for each prompt, if they are to be echoed.
    """

    def __init__(
        self,
        model_name: str,
        body: CompletionRequest,
        writer: LogprobWriter,
        echoes: Sequence[Echo] = (),
    ) -> None:
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model_name,
        }
        self._n = body.n or 1
        self._wants_logprobs = body.logprobs is not None
        self._wants_prompt_logprobs = body.prompt_logprobs is not None
        self._is_echo_alone = body.is_echo_alone
        self._writer = writer
        self._echoes = echoes
        self._text_len: dict[int, int] = {}  # characters of each choice's tokens so far

    def opening(self, index: int) -> None:
        return None

    def chunk(self, news: News) -> dict[str, Any]:
        return {**self._head, "choices": [self._choice(news)]}

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": self._usage(usage)}

    def whole(self, choices: list[News], usage: dict[str, Any]) -> dict[str, Any]:
        written = [self._choice(choice) for choice in choices]
        return {**self._head, "choices": written, "usage": self._usage(usage)}

    def _choice(self, news: News) -> dict[str, Any]:
        is_first = news.index not in self._text_len
        text, logprobs = news.text, news.logprobs
        if self._is_echo_alone:
            text, logprobs = "", []
        offset = self._text_len.get(news.index, 0)
        self._text_len[news.index] = offset + sum(
            len(self._writer.text(one.token_id)) for one in logprobs
        )
        choice: dict[str, Any] = {
            "index": news.index,
            "text": text,
            "logprobs": None,
            "finish_reason": finish_name(news.finish_reason),
            "stop_reason": news.stop_reason,
        }
        scores = news.prompt_logprobs  # comes with the first news
        if self._wants_prompt_logprobs and is_first:
            choice["prompt_logprobs"] = self._writer.prompt(scores)
        first_token = None
        if self._echoes and is_first:
            echo = self._echoes[news.index // self._n]
            choice["text"] = echo.text + text
            if self._wants_logprobs:
                first_token, logprobs = echo.first_token, [*scores, *logprobs]
                said = [first_token, *(one.token_id for one in scores)]
                self._text_len[news.index] += sum(len(self._writer.text(t)) for t in said)
        if self._wants_logprobs:
            choice["logprobs"] = self._writer.completion(logprobs, offset, first_token)
        return choice

    def _usage(self, usage: dict[str, Any]) -> dict[str, Any]:
        if not self._is_echo_alone:
            return usage
        return {**usage, "completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}


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


def echo_prompts(
    tokenizer: Tokenizer | None, prompts: list[Prompt], encoded: list[list[int]]
) -> list[Echo]:
    """Prompts as they are said back: text as it was given, token ids as the text they stand for."""
    echoes = []
    for prompt, ids in zip(prompts, encoded, strict=True):
        if isinstance(prompt, str):
            text = prompt
        else:
            text = tokenizer.decode(prompt, skip_special_tokens=False) if tokenizer else ""
        echoes.append(Echo(text, ids[0] if ids else 0))
    return echoes


def _are_token_ids(items: list[Any]) -> bool:
    return all(type(item) is int for item in items)  # bool is an int to isinstance
