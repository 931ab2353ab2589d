"""``/v1/completions``: reading of prompts (text or token ids), format of answers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.requests.outputs import FinishReason, TokenLogprobs
from kvflow_jax.serve.generation import ChoiceDelta
from kvflow_jax.serve.json_types import as_integer
from kvflow_jax.serve.logprobs import LogprobWriter, TextOffsets
from kvflow_jax.serve.protocols import Tokenizer
from kvflow_jax.serve.schemas import CompletionRequest
from kvflow_jax.serve.service import Service
from kvflow_jax.serve.stream import finish_name
from kvflow_jax.workflow.hints import HintParser, Hints

Prompt = str | list[int]

MAX_BATCH_CHARS = 64 * 1024  # about 50 ms of tokenization


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt to repeat before its answers."""

    text: str
    first_token: int
    is_text: bool  # False for a prompt of token ids


class CompletionFormat:
    """The response objects of one text completion; choice ``i`` answers prompt ``i // n``.

    Args:
        echoes: one per prompt if the request sets ``echo``, else empty.
    """

    def __init__(
        self,
        model_name: str,
        body: CompletionRequest,
        writer: LogprobWriter,
        echoes: Sequence[Echo] = (),
    ) -> None:
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self._head = {
            "id": self.id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": model_name,
        }
        self._n = body.num_choices
        self._num_logprobs = body.logprobs
        self._num_prompt_logprobs = body.prompt_logprobs
        self._skips_special = body.skip_special_tokens is not False
        self._returns_token_ids = bool(body.return_token_ids)
        self._is_echo_only = body.is_echo_only
        self._writer = writer
        self._echoes = echoes
        self._offsets: dict[int, TextOffsets] = {}  # by index of the choice

    def first_chunk(self, delta: ChoiceDelta) -> None:
        return None

    def chunks(self, delta: ChoiceDelta) -> list[dict[str, Any]]:
        return [{**self._head, "choices": [self._choice(delta)]}]

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": self._usage(usage)}

    def full(self, choices: list[ChoiceDelta], usage: dict[str, Any]) -> dict[str, Any]:
        written = [self._choice(choice) for choice in choices]
        return {**self._head, "choices": written, "usage": self._usage(usage)}

    def _choice(self, delta: ChoiceDelta) -> dict[str, Any]:
        is_first = delta.index not in self._offsets
        offsets = self._offsets.setdefault(delta.index, self._writer.offsets())
        text, logprobs, finish = delta.text, delta.logprobs, finish_name(delta.finish_reason)
        token_ids, stop_reason = delta.token_ids, delta.stop_reason
        # The engine always computes at least one token; the request wants none.
        if self._is_echo_only:
            text, logprobs, token_ids, stop_reason = "", [], [], None
            finish = finish and FinishReason.LENGTH.value
        choice: dict[str, Any] = {
            "index": delta.index,
            "text": text,
            "logprobs": None,
            "finish_reason": finish,
            "stop_reason": stop_reason,
            "prompt_logprobs": None,
            "prompt_token_ids": None,
            "token_ids": None,
        }
        if self._returns_token_ids:
            choice["token_ids"] = token_ids
            if delta.prompt_ids is not None:
                choice["prompt_token_ids"] = delta.prompt_ids.tolist()
        if self._num_prompt_logprobs is not None and is_first:
            scores = _truncate_top(delta.prompt_logprobs, self._num_prompt_logprobs)
            choice["prompt_logprobs"] = self._writer.prompt(scores)
        written = None
        if self._echoes and is_first:
            echo = self._echoes[delta.index // self._n]
            choice["text"] = echo.text + text
            if self._num_logprobs is not None:
                # Special tokens that the tokenizer adds to a text are not part of the text.
                offsets.skips_special = echo.is_text
                scores = _truncate_top(delta.prompt_logprobs, self._num_logprobs)
                written = self._writer.completion(scores, offsets, echo.first_token)
        if self._num_logprobs is not None:
            offsets.skips_special = self._skips_special
            rest = self._writer.completion(logprobs, offsets)
            choice["logprobs"] = (
                rest if written is None else {key: written[key] + rest[key] for key in rest}
            )
        return choice

    def _usage(self, usage: dict[str, Any]) -> dict[str, Any]:
        if not self._is_echo_only:
            return usage
        return {**usage, "completion_tokens": 0, "total_tokens": usage["prompt_tokens"]}


def read_prompts(prompt: Any) -> list[Prompt]:
    """Return a list of prompts from a string, strings, token ids, or lists of token ids.

    Raises:
        InvalidRequestError: ``prompt`` has another type, or is an empty list.
    """
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, str) for item in prompt):
            return list(prompt)
        if (token_ids := _as_token_ids(prompt)) is not None:
            return [token_ids]
        lists = [_as_token_ids(item) if isinstance(item, list) else None for item in prompt]
        if None not in lists:
            return [ids for ids in lists if ids is not None]
    raise InvalidRequestError(
        "prompt must be a string, or a non-empty list of strings, of token ids, or of lists of "
        "token ids",
        param="prompt",
    )


def token_prompts(prompts: list[Prompt]) -> list[list[int]] | None:
    """Return the prompts if all of them are token ids, else None."""
    token_ids = [prompt for prompt in prompts if not isinstance(prompt, str)]
    return token_ids if len(token_ids) == len(prompts) else None


async def encode_prompts(
    service: Service,
    tenant: str,
    prompts: list[Prompt],
    *,
    truncates: bool,
    adds_special_tokens: bool = True,
) -> list[list[int]]:
    """Return the token ids of each prompt; raise the errors of ``Service.tokenize``.

    Long ones take a turn of the tenant each.
    """
    encoded: list[list[int]] = []
    while len(encoded) < len(prompts):
        batch = _next_batch(prompts, len(encoded))
        encoded += await service.tokenize(
            tenant,
            [[prompt] for prompt in batch if isinstance(prompt, str)],
            lambda t, batch=batch: [  # type: ignore[misc]
                encode_text(t, p, adds_special_tokens) if isinstance(p, str) else p for p in batch
            ],
            truncates=truncates,
        )
    return encoded


def encode_text(tokenizer: Tokenizer, text: str, adds_special_tokens: bool) -> list[int]:
    """Return the tokens of a text, with one BOS if the text has it as well as the tokenizer.

    A chat that a client has rendered itself begins with it. Models answer worse to two.
    """
    ids = tokenizer.encode(text, add_special_tokens=adds_special_tokens)
    if not adds_special_tokens or len(ids) < 2 or ids[0] != ids[1]:
        return ids
    return ids[1:] if tokenizer.encode("")[:1] == ids[:1] else ids


def _next_batch(prompts: Sequence[Prompt], start: int) -> Sequence[Prompt]:
    """Return the prompts from ``start`` on that one turn encodes."""
    num_chars = 0
    for end in range(start, len(prompts)):
        num_chars += len(prompts[end])
        if num_chars >= MAX_BATCH_CHARS:
            return prompts[start : end + 1]
    return prompts[start:]


def read_hints(hint_parser: HintParser, prompts: Sequence[Sequence[int]]) -> list[Hints]:
    """Return the hints of each tokenized prompt. Runs on the tokenizer threads."""
    hints, boundary = hint_parser.parse(), hint_parser.fixed_prefix
    if boundary is None:
        return [hints] * len(prompts)
    # A text prompt has no messages.
    if boundary.unit == "message":
        return [replace(hints, is_clipped=True)] * len(prompts)
    return [hints.with_fixed(boundary.end, len(prompt)) for prompt in prompts]


def echo_prompts(
    tokenizer: Tokenizer | None, prompts: list[Prompt], encoded: list[list[int]]
) -> list[Echo]:
    """Return the prompts to repeat: text unchanged, token ids as the text they decode to."""
    echoes = []
    for prompt, ids in zip(prompts, encoded, strict=True):
        if isinstance(prompt, str):
            text = prompt
        else:
            text = tokenizer.decode(prompt, skip_special_tokens=False) if tokenizer else ""
        echoes.append(Echo(text, ids[0] if ids else 0, isinstance(prompt, str)))
    return echoes


def _as_token_ids(items: list[Any]) -> list[int] | None:
    """Return a list of integers, of any of JSON's forms; None for anything else."""
    types = set(map(type, items))  # not isinstance, for which a bool is an int
    if float in types:
        items = [as_integer(item) for item in items]
        types = set(map(type, items))
    return items if types <= {int} else None


def _truncate_top(scores: Sequence[TokenLogprobs], num_top: int) -> list[TokenLogprobs]:
    """Keep ``num_top`` alternatives: echo and ``prompt_logprobs`` may ask for different numbers."""
    return [replace(score, top=score.top[:num_top]) for score in scores]
