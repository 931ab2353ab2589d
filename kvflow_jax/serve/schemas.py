"""Schemas of request bodies. Unknown fields are ignored, null is absent, types are strict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.requests.sampling_params import MAX_LOGPROBS, SamplingParams
from kvflow_jax.serve.json_types import UNLIMITED, JsonInt, JsonObject, NumLogprobs, TokenLimit
from kvflow_jax.serve.reasoning_fields import ReasoningFields
from kvflow_jax.serve.sampling_fields import sampling_values, with_sampling_fields
from kvflow_jax.serve.structured_outputs import read_structured_outputs

MAX_N = 128  # OpenAI's limit

# Unsupported fields that change the answer, each with its values that change nothing. Any other
# value is rejected, because ignoring it would silently give a different answer.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "guided_whitespace_pattern": (),
    "structural_tag": (),
    "grammar_lazy": (False,),
    "grammar_triggers": ([],),
    "bad_words": ([],),
    "use_beam_search": (False,),
    "logprob_token_ids": ([],),
    "logits_processors": ([],),
    # Of SGLang, TGI and transformers.
    "custom_logit_processor": ("",),
    "max_new_tokens": (),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "stop_regex": ("", []),
    "do_sample": (True,),
    "early_stopping": (False,),
    "input_embeds": (),
    "input_ids": (),
    "length_penalty": (0, 1),
    "max_length": (),
    "max_tokens_to_sample": (),
    "min_length": (0,),
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "penalty_alpha": (0,),
    "stop_sequences": ([],),
    "stop_words": ([],),
    # Of Ollama.
    "num_predict": (-1,),
    "options": ({},),
    # Of text-generation-webui, TabbyAPI and KoboldCpp.
    "ban_eos_token": (False,),
    "banned_strings": ("", []),
    "cfg_scale": (1,),
    "custom_token_bans": ("", []),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "guidance_scale": (1,),
    "mirostat_mode": (0,),
    "negative_prompt": ("",),
    "smoothing_factor": (0,),
    "tfs": (1,),
    "top_a": (0,),
    "typical": (1,),
    # Of llama.cpp.
    "lora": ([],),
    "lora_path": ("",),
    "n_probs": (0,),
    "tfs_z": (1,),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "mirostat": (0,),
    "n_predict": (-1,),
    "repeat_penalty": (1,),
    "typical_p": (1,),
    "xtc_probability": (0,),
}
# What to send instead of an unsupported field, where that is known.
_INSTEAD = {
    "functions": "tools",
    "function_call": "tools",
    "ban_eos_token": "ignore_eos",
    "best_of": "n",
    "do_sample": "temperature 0",
    "input_ids": "prompt of /v1/completions",
    "json_mode": "response_format",
    "max_length": "max_tokens",
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "max_tokens_to_sample": "max_tokens",
    "min_length": "min_tokens",
    "n_probs": "logprobs",
    "num_predict": "max_tokens",
    "num_return_sequences": "n",
    "options": "fields of the body itself",
    "stop_sequences": "stop",
    "stop_words": "stop",
    "system": "a message of the role system",
    "min_new_tokens": "min_tokens",
    "n_predict": "max_tokens",
    "repeat_penalty": "repetition_penalty",
}
_UNSUPPORTED_CHAT: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "json_mode": (False,),
    "max_output_tokens": (),
    "system": ("",),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "chat_template": (),
    "documents": ([],),
    "separate_reasoning": (True,),
    "reasoning_format": ("auto", "deepseek", "parsed"),
    "thinking_token_budget": (),
    "thinking_budget": (),
    "reasoning_budget": (-1,),
}
# The predecessors of ``tools`` and ``tool_choice``, whose answers have another form.
_DEPRECATED_CHAT: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
}
_UNSUPPORTED_COMPLETION: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "best_of": (1,),
    "prompt_embeds": (),
}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationRequest(BaseModel):
    """The fields shared by chat and text completions.

    Declares only those sampling parameters that a route reads itself, or whose field differs
    between the routes; ``with_sampling_fields`` adds the others from their definitions.
    """

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    unsupported: ClassVar[dict[str, tuple[Any, ...]]] = _UNSUPPORTED
    default_max_tokens: ClassVar[int | None] = None

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: TokenLimit | None = None
    prompt_logprobs: JsonInt | None = None
    n: JsonInt | None = Field(None, ge=1, le=MAX_N)
    priority: JsonInt | None = None
    user: str | None = Field(None, max_length=1024)
    structured_outputs: Any = None
    cache_salt: str | None = Field(None, max_length=1024)
    truncate_prompt_tokens: JsonInt | None = Field(None, ge=-1)
    truncation_side: Literal["left", "right"] | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    # Hints are advice: an invalid value is no reason to reject the request.
    agent_hints: Any = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.continuous_usage_stats)

    @property
    def session_id(self) -> str | None:
        """The session of hints that name none: OpenAI's ``prompt_cache_key``."""
        key = (self.model_extra or {}).get("prompt_cache_key")
        return key if isinstance(key, str) else None

    @property
    def num_choices(self) -> int:
        """Number of answers to each prompt."""
        return self.n or 1

    @property
    def token_limit(self) -> int | None:
        limit = self.default_max_tokens if self.max_tokens is None else self.max_tokens
        return None if limit == UNLIMITED else limit

    @property
    def num_logprobs(self) -> int | None:
        """Number of alternatives to report for each output token; None for no logprobs."""
        raise NotImplementedError

    @property
    def num_prompt_logprobs(self) -> int | None:
        return self.prompt_logprobs

    def truncate(self, prompt_ids: list[int], max_model_len: int) -> list[int]:
        """Return a prompt cut to ``truncate_prompt_tokens``, as vLLM does.

        -1 stands for the longest prompt that leaves room for the output.

        Raises:
            InvalidRequestError: it is more than the model's context.
        """
        limit = self.truncate_prompt_tokens
        if limit is None:
            return prompt_ids
        if not -1 <= limit <= max_model_len or limit == 0:
            raise InvalidRequestError(
                "truncate_prompt_tokens must be -1, or from 1 to this model's context of "
                f"{max_model_len} tokens, got {limit}",
                param="truncate_prompt_tokens",
            )
        if limit == -1:
            limit = max(1, max_model_len - (self.token_limit or 1))
        return prompt_ids[:limit] if self.truncation_side == "right" else prompt_ids[-limit:]

    def sampling_params(
        self, defaults: Mapping[str, int | float] = MappingProxyType({})
    ) -> list[SamplingParams]:
        """Return the sampling parameters of each of the ``n`` choices.

        Args:
            defaults: of the model, by parameter; fields of the request override them, but
                ``max_tokens``, which bounds every request, as in vLLM.

        Raises:
            InvalidRequestError: a value is out of range, or a field is not supported.
        """
        self._check_supported()
        limits = [limit for limit in (self.token_limit, defaults.get("max_tokens")) if limit]
        values: dict[str, Any] = {**defaults, **sampling_values(self)} | {
            "max_tokens": min(limits, default=None),
            "logprobs": self.num_logprobs,
            "prompt_logprobs": self.num_prompt_logprobs,
            "structured_outputs": read_structured_outputs(
                {**(self.model_extra or {}), "structured_outputs": self.structured_outputs}
            ),
        }
        first = SamplingParams(**values)
        # With the same seed, all choices would be equal.
        return [first.replace(seed=_next_seed(first.seed, i)) for i in range(self.num_choices)]

    def _check_supported(self) -> None:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "stream_options needs stream to be true", param="stream_options"
            )
        check_supported(self.model_extra or {}, self.unsupported)


def check_supported(fields: Mapping[str, Any], unsupported: Mapping[str, Sequence[Any]]) -> None:
    """Raise if a body has a field that is not supported, with a value that changes the answer.

    Args:
        unsupported: fields, each with its values that change nothing.

    Raises:
        InvalidRequestError: names the field.
    """
    for name, accepted in unsupported.items():
        value = fields.get(name)
        if value is not None and not any(_is_same(value, other) for other in accepted):
            remedy = f"use {_INSTEAD[name]}" if name in _INSTEAD else "omit it"
            raise InvalidRequestError(
                f"{name} is not supported; {remedy}", param=name, code="unsupported_parameter"
            )


@with_sampling_fields
class ChatRequest(GenerationRequest):
    """Body of ``POST /v1/chat/completions``; ``messages`` is read by ``read_messages``."""

    unsupported = {**_UNSUPPORTED, **_UNSUPPORTED_CHAT, **_DEPRECATED_CHAT}

    messages: Annotated[list[dict[str, Any]], FailFast()] = Field(min_length=1)
    max_completion_tokens: TokenLimit | None = None
    chat_template_kwargs: JsonObject | None = None
    reasoning_effort: str | None = None
    include_reasoning: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    echo: bool | None = None
    # Read by ``chat_tools``.
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None

    logprobs: bool | None = None
    top_logprobs: JsonInt | None = None

    @property
    def reasoning_fields(self) -> ReasoningFields:
        """What it asks of reasoning, under any name; raise InvalidRequestError for a wrong type."""
        return ReasoningFields.of(
            {
                **(self.model_extra or {}),
                "reasoning_effort": self.reasoning_effort,
                "include_reasoning": self.include_reasoning,
            }
        )

    @property
    def token_limit(self) -> int | None:
        limit = self.max_completion_tokens
        if limit is None:
            return super().token_limit
        return None if limit == UNLIMITED else limit

    @property
    def num_logprobs(self) -> int | None:
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequestError(
                "top_logprobs requires logprobs to be true", param="top_logprobs"
            )
        if self.top_logprobs is not None:
            _check_num_logprobs("top_logprobs", self.top_logprobs)
        return (self.top_logprobs or 0) if self.logprobs else None


@with_sampling_fields
class CompletionRequest(GenerationRequest):
    """Body of ``POST /v1/completions``; ``prompt`` is read by ``completions.read_prompts``."""

    unsupported = {**_UNSUPPORTED, **_UNSUPPORTED_COMPLETION}
    default_max_tokens = 16  # OpenAI's default

    max_tokens: JsonInt | None = Field(None, ge=UNLIMITED)
    logprobs: NumLogprobs | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None  # null: true
    echo: bool | None = None
    prompt: Any

    @property
    def is_echo_only(self) -> bool:
        """True if only the prompt is returned, with its logprobs, and no output tokens."""
        return bool(self.echo) and self.max_tokens == 0

    @property
    def token_limit(self) -> int | None:
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequestError(
                "max_tokens must be at least 1; 0 requires echo", param="max_tokens"
            )
        # A step always samples; the token sampled for echo only is not returned.
        return 1 if self.max_tokens == 0 else super().token_limit

    @property
    def num_logprobs(self) -> int | None:
        if self.logprobs is not None:
            _check_num_logprobs("logprobs", self.logprobs)
        return self.logprobs

    @property
    def num_prompt_logprobs(self) -> int | None:
        requested = [self.prompt_logprobs, self.num_logprobs if self.echo else None]
        return max((num for num in requested if num is not None), default=None)


def _check_num_logprobs(name: str, value: int) -> None:
    if not 0 <= value <= MAX_LOGPROBS:
        raise InvalidRequestError(
            f"{name} must be between 0 and {MAX_LOGPROBS}, got {value}", param=name
        )


def _next_seed(seed: int | None, i: int) -> int | None:
    # Wraps around within 64 signed bits.
    return None if seed is None else (seed + i + 2**63) % 2**64 - 2**63


def _is_same(value: Any, accepted: Any) -> bool:
    # False == 0 in Python, but in JSON they are different values.
    return isinstance(value, bool) == isinstance(accepted, bool) and bool(value == accepted)
