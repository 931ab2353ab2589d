"""``/v1/completions``: one prompt or many, as text or token ids."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.requests.outputs import FinishReason, TokenLogprobs
from kvflow_jax.serve.generation import ChoiceDelta
from kvflow_jax.serve.logprobs import LogprobWriter, TextOffsets
from kvflow_jax.serve.protocols import Tokenizer
from kvflow_jax.serve.schemas import CompletionRequest
from kvflow_jax.serve.stream import finish_name
from kvflow_jax.workflow.hints import HintReader, Hints

Prompt = str | list[int]


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt to be said before its answers."""

    text: str
    first_token: int
    is_text: bool  # rather than token ids


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
        self._num_logprobs = body.logprobs
        self._num_prompt_logprobs = body.prompt_logprobs
        self._skips_special = body.skip_special_tokens is not False
        self._is_echo_alone = body.is_echo_alone
        self._writer = writer
        self._echoes = echoes
        self._offsets: dict[int, TextOffsets] = {}  # of each choice

    def opening(self, index: int) -> None:
        return None

    def chunk(self, news: ChoiceDelta) -> dict[str, Any]:
        return {**self._head, "choices": [self._choice(news)]}

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": self._usage(usage)}

    def whole(self, choices: list[ChoiceDelta], usage: dict[str, Any]) -> dict[str, Any]:
        written = [self._choice(choice) for choice in choices]
        return {**self._head, "choices": written, "usage": self._usage(usage)}

    def _choice(self, news: ChoiceDelta) -> dict[str, Any]:
        is_first = news.index not in self._offsets
        offsets = self._offsets.setdefault(news.index, self._writer.offsets())
        text, logprobs, finish = news.text, news.logprobs, finish_name(news.finish_reason)
        stop_reason = news.stop_reason
        if self._is_echo_alone:  # nobody asked for the token that was computed
            text, logprobs, stop_reason = "", [], None
            finish = finish and FinishReason.LENGTH.value
        choice: dict[str, Any] = {
            "index": news.index,
            "text": text,
            "logprobs": None,
            "finish_reason": finish,
            "stop_reason": stop_reason,
        }
        if self._num_prompt_logprobs is not None and is_first:
            scores = _cut(news.prompt_logprobs, self._num_prompt_logprobs)
            choice["prompt_logprobs"] = self._writer.prompt(scores)
        written = None
        if self._echoes and is_first:
            echo = self._echoes[news.index // self._n]
            choice["text"] = echo.text + text
            if self._num_logprobs is not None:
                # Special tokens that the tokenizer put around a text are not part of it.
                offsets.skips_special = echo.is_text
                scores = _cut(news.prompt_logprobs, self._num_logprobs)
                written = self._writer.completion(scores, offsets, echo.first_token)
        if self._num_logprobs is not None:
            offsets.skips_special = self._skips_special
            rest = self._writer.completion(logprobs, offsets)
            choice["logprobs"] = (
                rest if written is None else {key: written[key] + rest[key] for key in rest}
            )
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


def read_hints(reader: HintReader, prompts: Sequence[Sequence[int]]) -> list[Hints]:
    """Hints of each prompt, tokens already. Runs on the tokenizer's threads."""
    hints, given = reader.read(), reader.fixed_prefix
    if given is None:
        return [hints] * len(prompts)
    if given.unit == "message":  # there are none here
        return [replace(hints, is_clipped=True)] * len(prompts)
    return [hints.with_fixed(given.end, len(prompt)) for prompt in prompts]


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
        echoes.append(Echo(text, ids[0] if ids else 0, isinstance(prompt, str)))
    return echoes


def _are_token_ids(items: list[Any]) -> bool:
    return all(type(item) is int for item in items)  # bool is an int to isinstance


def _cut(scores: Sequence[TokenLogprobs], num_top: int) -> list[TokenLogprobs]:
    """Scores with so many alternatives: echo and ``prompt_logprobs`` may ask for different ones."""
    return [replace(score, top=score.top[:num_top]) for score in scores]
