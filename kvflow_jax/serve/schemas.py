"""What clients may send. Unknown fields pass, null is absent, types are strict."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.requests.sampling_params import MAX_LOGIT_BIAS, MAX_LOGPROBS, SamplingParams

MAX_N = 128  # OpenAI's

T = TypeVar("T")

# Fields that change the answer and that we cannot honour yet, with the values that change
# nothing. Refusing the others is better than silently answering something else.
_NOT_YET: dict[str, tuple[Any, ...]] = {
    "response_format": ({"type": "text"},),
    "structured_outputs": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
}
_NOT_YET_CHAT: dict[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "chat_template": (),
    "documents": ([],),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
}
_NOT_YET_COMPLETION: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "best_of": (1,),
    "prompt_embeds": (),
}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = None


class GenerationRequest(BaseModel):
    """Fields that chat and text completions share."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = _NOT_YET
    default_max_tokens: ClassVar[int | None] = None

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    n: int | None = Field(None, ge=1, le=MAX_N)
    seed: int | None = None
    stop: Any = None  # SamplingParams knows what it may be
    include_stop_str_in_output: bool | None = None
    min_tokens: int | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    priority: int | None = None
    user: str | None = Field(None, max_length=1024)
    cache_salt: str | None = Field(None, max_length=1024)
    agent_hints: Any = None  # advice: of whatever form, it is no reason to refuse

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens or self.default_max_tokens

    @property
    def num_logprobs(self) -> int | None:
        """Alternatives to report beside each new token; None: report nothing."""
        raise NotImplementedError

    @property
    def num_prompt_logprobs(self) -> int | None:
        return self.prompt_logprobs

    def sampling_params(self) -> list[SamplingParams]:
        """How to sample each of the ``n`` answers to a prompt.

        Raises:
            InvalidRequestError: a value out of range, or a field that is not supported yet.
        """
        self._check_supported()
        first = SamplingParams(
            max_tokens=self.token_limit,
            temperature=_or(self.temperature, 1.0),
            top_p=_or(self.top_p, 1.0),
            top_k=0 if self.top_k in (None, -1) else self.top_k,  # vLLM writes -1 for all
            min_p=_or(self.min_p, 0.0),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            frequency_penalty=_or(self.frequency_penalty, 0.0),
            presence_penalty=_or(self.presence_penalty, 0.0),
            logit_bias=_read_bias(self.logit_bias or {}),
            seed=self.seed,
            stop=_or(self.stop, ()),
            include_stop=bool(self.include_stop_str_in_output),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            min_tokens=_or(self.min_tokens, 0),
            ignore_eos=bool(self.ignore_eos),
            skip_special_tokens=_or(self.skip_special_tokens, True),
            logprobs=self.num_logprobs,
            prompt_logprobs=self.num_prompt_logprobs,
        )
        # One seed for all would give one answer n times.
        return [replace(first, seed=_next_seed(self.seed, i)) for i in range(self.n or 1)]

    def _check_supported(self) -> None:
        extra = self.model_extra or {}
        for name, harmless in self.unsupported.items():
            value = extra.get(name)
            if value is not None and not any(_same(value, other) for other in harmless):
                raise InvalidRequestError(
                    f"{name} is not supported yet; leave it out",
                    param=name,
                    code="unsupported_parameter",
                )


class ChatRequest(GenerationRequest):
    """Body of ``POST /v1/chat/completions``; ``messages`` is read by ``chat.read_messages``."""

    unsupported = {**_NOT_YET, **_NOT_YET_CHAT}

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    chat_template_kwargs: dict[str, Any] | None = None

    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError(
                "top_logprobs needs logprobs to be true", param="top_logprobs"
            )
        if self.top_logprobs is not None:
            _check_num_logprobs("top_logprobs", self.top_logprobs)
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationRequest):
    """Body of ``POST /v1/completions``; ``prompt`` is read by ``completions.read_prompts``."""

    unsupported = {**_NOT_YET, **_NOT_YET_COMPLETION}
    default_max_tokens = 16  # OpenAI's

    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = None
    echo: bool | None = None
    prompt: Any

    @property
    def is_echo_alone(self) -> bool:
        """Whether nothing is to be generated: the prompt is asked back, with its logprobs."""
        return bool(self.echo) and self.max_tokens == 0

    @property
    def token_limit(self) -> int | None:
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequestError(
                "max_tokens must be at least 1; 0 is for echo alone", param="max_tokens"
            )
        # Echo alone computes one token that nobody sees: a step always samples.
        return 1 if self.max_tokens == 0 else super().token_limit

    @property
    def num_logprobs(self) -> int | None:
        if self.logprobs is not None:
            _check_num_logprobs("logprobs", self.logprobs)
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        asked = [self.prompt_logprobs, self.num_logprobs if self.echo else None]
        return max((num for num in asked if num is not None), default=None)


def _read_bias(bias: dict[str, float]) -> dict[int, float]:
    """JSON's keys are strings; these are token ids."""
    if len(bias) > MAX_LOGIT_BIAS:  # before any work on it
        raise InvalidRequestError(
            f"logit_bias may hold up to {MAX_LOGIT_BIAS} entries, got {len(bias)}",
            param="logit_bias",
        )
    read = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) < 11):
            raise InvalidRequestError(
                f"keys of logit_bias must be token ids, got {key!r}", param="logit_bias"
            )
        read[int(key)] = float(value)
    return read


def _check_num_logprobs(name: str, value: int) -> None:
    if not 0 <= value <= MAX_LOGPROBS:
        raise InvalidRequestError(
            f"{name} must be between 0 and {MAX_LOGPROBS}, got {value}", param=name
        )


def _next_seed(seed: int | None, i: int) -> int | None:
    return None if seed is None else (seed + i + 2**63) % 2**64 - 2**63  # stays within 64 bits


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _same(value: Any, harmless: Any) -> bool:
    # False == 0 in Python; logprobs: 0 asks for something, logprobs: false does not.
    return isinstance(value, bool) == isinstance(harmless, bool) and bool(value == harmless)
