"""What clients may send. Unknown fields pass, null is absent, types are strict."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.sampling import MAX_STOP_STRINGS, SamplingParams

# Fields that change the answer and that we cannot honour yet, with the values that change
# nothing. Refusing the others is better than silently answering something else.
_NOT_YET: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "stop": ("", []),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "prompt_logprobs": (),
    "response_format": ({"type": "text"},),
    "structured_outputs": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "min_tokens": (0,),
    "bad_words": ([],),
    "allowed_token_ids": ([],),
    "skip_special_tokens": (True,),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "echo": (False,),
}
_NOT_YET_CHAT: dict[str, tuple[Any, ...]] = {
    "top_logprobs": (0,),
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
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    priority: int | None = None
    cache_salt: str | None = Field(None, max_length=1024)

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens or self.default_max_tokens

    def sampling_params(self) -> SamplingParams:
        """How to sample.

        Raises:
            InvalidRequestError: a value out of range, or a field that is not supported yet.
        """
        self._check_supported()
        return SamplingParams(
            max_tokens=self.token_limit,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=0 if self.top_k in (None, -1) else self.top_k,  # vLLM writes -1 for all
            seed=self.seed,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=bool(self.ignore_eos),
        )

    def _check_supported(self) -> None:
        extra = self.model_extra or {}
        _check_stop(extra.get("stop"))
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

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(GenerationRequest):
    """Body of ``POST /v1/completions``; ``prompt`` is read by ``completions.read_prompts``."""

    unsupported = {**_NOT_YET, **_NOT_YET_COMPLETION}
    default_max_tokens = 16  # OpenAI's

    prompt: Any


def _check_stop(stop: Any) -> None:
    strings = [stop] if isinstance(stop, str) else stop
    if strings is None:
        return
    if not isinstance(strings, list) or not all(isinstance(s, str) for s in strings):
        raise InvalidRequestError("stop must be a string or a list of strings", param="stop")
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequestError(
            f"stop may hold up to {MAX_STOP_STRINGS} strings, got {len(strings)}", param="stop"
        )


def _same(value: Any, harmless: Any) -> bool:
    # False == 0 in Python; logprobs: 0 asks for something, logprobs: false does not.
    return isinstance(value, bool) == isinstance(harmless, bool) and bool(value == harmless)
