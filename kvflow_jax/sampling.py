"""How the next token is chosen and when a request ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvflow_jax.errors import InvalidRequestError

MAX_STOP_STRINGS = 16
MAX_TOP_K = 1024
MIN_TEMPERATURE = 1e-5  # below it float32 cannot tell the result from greedy


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling and stop conditions of one request.

    Args:
        max_tokens: at most this many new tokens, >= 1; None: as many as the context holds.
        temperature: 0 is greedy, as is anything below 1e-5; else logits are divided by it, at
            most 2.
        top_k: sample among the k most likely tokens, at most 1024; 0 is all.
        top_p: sample among the fewest tokens whose probabilities sum to top_p, in (0, 1].
        seed: same seed, prompt and parameters give the same draws; None: a fresh seed.
        stop_token_ids: token ids that end the text and are not part of it.
        ignore_eos: go on after the model's end-of-text token.

    Raises:
        InvalidRequestError: a value out of range; names the field and its bound.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, low=1)
        _check_float("temperature", self.temperature, low=0.0, high=2.0)
        _check_int("top_k", self.top_k, low=0, high=MAX_TOP_K)
        _check_float("top_p", self.top_p, low=0.0, high=1.0, low_open=True)
        if self.seed is not None:
            _check_int("seed", self.seed, low=-(2**63), high=2**63 - 1)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        for token in self.stop_token_ids:
            _check_int("stop_token_ids", token, low=0)

    @property
    def is_greedy(self) -> bool:
        return self.temperature < MIN_TEMPERATURE


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
