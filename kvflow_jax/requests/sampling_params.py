"""Sampling parameters and stop conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvflow_jax.errors import InvalidRequestError

MAX_STOP_STRINGS = 16
MAX_STOP_LEN = 256  # characters
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 1024  # entries
MAX_LOGPROBS = 20
MAX_TOP_K = 1024
MIN_TEMPERATURE = 1e-5  # below it, sampling in float32 is the same as greedy


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling and stop conditions of one request.

    Logits are changed in this order: ``logit_bias``, the ban of stop tokens before ``min_tokens``,
    penalties, temperature, min_p, top_k, top_p. For several answers to one prompt, send the prompt
    several times: its shared KV is computed once.

    Args:
        max_tokens: maximum number of new tokens, >= 1; None: up to the end of the context.
        temperature: divides the logits, in [0, 2]; below 1e-5 sampling is greedy.
        top_k: sample among the k most likely tokens, at most 1024; 0: among all.
        top_p: sample among the fewest tokens whose probabilities sum to top_p, in (0, 1].
        min_p: exclude tokens less likely than min_p times the most likely one, in [0, 1].
        repetition_penalty: for tokens that occur in prompt or output, divides positive logits and
            multiplies negative ones (arXiv 1909.05858), in [0.01, 10].
        frequency_penalty: subtracted from a token's logit for each occurrence in the output, in
            [-2, 2].
        presence_penalty: subtracted once if the token occurs in the output, in [-2, 2].
        logit_bias: from token id to a number in [-100, 100] that is added to its logit; at most
            1024 entries.
        seed: the same seed, prompt and parameters give the same draws; None: a new seed.
        stop: strings that end the text and are not part of it, at most 16 of 256 characters.
        include_stop: include the stop string in the text.
        stop_token_ids: token ids that end the text and are not part of it, at most 64.
        min_tokens: number of new tokens before which no stop condition ends the text.
        ignore_eos: continue after the model's end-of-text token.
        skip_special_tokens: omit special tokens from the text.
        logprobs: report the log probability of each new token and of this many most likely tokens,
            at most 20; None: report none. They are the model's own, before any change above.
        prompt_logprobs: the same for the tokens of the prompt; the whole prompt is then computed,
            even if it is cached.

    Raises:
        InvalidRequestError: a value is out of range; the message names the field and its bound.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: str | Sequence[str] = ()
    include_stop: bool = False
    stop_token_ids: Sequence[int] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, low=1)
        _check_float("temperature", self.temperature, low=0.0, high=2.0)
        _check_int("top_k", self.top_k, low=0, high=MAX_TOP_K)
        _check_float("top_p", self.top_p, low=0.0, high=1.0, low_open=True)
        _check_float("min_p", self.min_p, low=0.0, high=1.0)
        _check_float("repetition_penalty", self.repetition_penalty, low=0.01, high=10.0)
        _check_float("frequency_penalty", self.frequency_penalty, low=-2.0, high=2.0)
        _check_float("presence_penalty", self.presence_penalty, low=-2.0, high=2.0)
        if self.seed is not None:
            _check_int("seed", self.seed, low=-(2**63), high=2**63 - 1)
        self._check_bias()
        self._check_stops()
        _check_int("min_tokens", self.min_tokens, low=0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens must be at most max_tokens, {self.max_tokens}, got {self.min_tokens}",
                param="min_tokens",
            )
        for name in ("include_stop", "ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(f"{name} must be true or false", param=name)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), low=0, high=MAX_LOGPROBS)

    @property
    def is_greedy(self) -> bool:
        return self.temperature < MIN_TEMPERATURE

    @property
    def needs_sampler_state(self) -> bool:
        """True if logits are changed by a bias, a ban, or penalties on the tokens so far."""
        return bool(
            self.logit_bias
            or self.min_tokens
            or self.repetition_penalty != 1.0
            or self.frequency_penalty
            or self.presence_penalty
        )

    def _check_bias(self) -> None:
        if not isinstance(self.logit_bias, Mapping):
            raise InvalidRequestError(
                "logit_bias must map token ids to numbers", param="logit_bias"
            )
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidRequestError(
                f"logit_bias may hold up to {MAX_LOGIT_BIAS} entries, got {len(self.logit_bias)}",
                param="logit_bias",
            )
        for token, bias in self.logit_bias.items():
            _check_int("logit_bias", token, low=0)
            _check_float("logit_bias", bias, low=-100.0, high=100.0)
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    def _check_stops(self) -> None:
        stops = (self.stop,) if isinstance(self.stop, str) else self.stop
        if not isinstance(stops, Sequence) or not all(isinstance(stop, str) for stop in stops):
            raise InvalidRequestError("stop must be a string or a list of strings", param="stop")
        # An empty string means no stop string, as in OpenAI's API.
        object.__setattr__(self, "stop", tuple(stop for stop in stops if stop))
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(
                f"stop may hold up to {MAX_STOP_STRINGS} strings, got {len(self.stop)}",
                param="stop",
            )
        if any(len(stop) > MAX_STOP_LEN for stop in self.stop):
            raise InvalidRequestError(
                f"a stop string may have up to {MAX_STOP_LEN} characters", param="stop"
            )
        ids = self.stop_token_ids
        if not isinstance(ids, list | tuple):
            raise InvalidRequestError(
                "stop_token_ids must be a list of token ids", param="stop_token_ids"
            )
        if len(ids) > MAX_STOP_TOKEN_IDS:
            raise InvalidRequestError(
                f"stop_token_ids may hold up to {MAX_STOP_TOKEN_IDS} ids, got {len(ids)}",
                param="stop_token_ids",
            )
        for token in ids:
            _check_int("stop_token_ids", token, low=0)
        object.__setattr__(self, "stop_token_ids", tuple(ids))


def _check_int(name: str, value: Any, low: int, high: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be an integer, got {value!r}", param=name)
    if value < low or (high is not None and value > high):
        bound = f"at least {low}" if high is None else f"between {low} and {high}"
        raise InvalidRequestError(f"{name} must be {bound}, got {value}", param=name)


def _check_float(name: str, value: Any, low: float, high: float, low_open: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError(f"{name} must be a number, got {value!r}", param=name)
    if math.isnan(value) or value > high or value < low or (low_open and value == low):
        edge = "(" if low_open else "["
        raise InvalidRequestError(
            f"{name} must be in {edge}{low:g}, {high:g}], got {value}", param=name
        )
