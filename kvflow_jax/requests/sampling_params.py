"""Sampling parameters and stop conditions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields
from textwrap import fill
from typing import Annotated, Any, get_args, get_type_hints

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.requests.param import (
    Flag,
    Integer,
    Number,
    Param,
    Strings,
    StructuredOutputs,
    TokenBias,
    TokenIds,
)

MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIAS = 1024  # entries
MAX_TOP_K = (1 << 31) - 1  # beyond the vocabulary it is all tokens
MAX_LOGPROBS = 20
MAX_ALLOWED_TOKEN_IDS = 1 << 20  # more than any vocabulary
MIN_TEMPERATURE = 1e-5  # below it, sampling in float32 is the same as greedy


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling and stop conditions of one request.

    Logits are changed in this order: ``logit_bias``, the ban of stop tokens before ``min_tokens``,
    penalties, ``structured_outputs`` or ``allowed_token_ids``, temperature, top_n_sigma, min_p,
    top_k, top_p. For several answers to one prompt, send the prompt several times: its shared KV is
    computed once.

    Raises:
        InvalidRequestError: a value is out of range; the message names the field and its bound.
    """

    max_tokens: Annotated[
        int | None,
        Integer("maximum number of new tokens; none: up to the end of the context", low=1),
    ] = None
    temperature: Annotated[
        float,
        Number(
            "divides the logits; below 1e-5 sampling is greedy", low=0.0, high=100.0, is_column=True
        ),
    ] = 1.0
    top_k: Annotated[
        int,
        Integer(
            "sample among the k most likely tokens; 0: among all",
            low=0,
            high=MAX_TOP_K,
            is_column=True,
            http_off=-1,  # vLLM's
        ),
    ] = 0
    top_p: Annotated[
        float,
        Number(
            "sample among the fewest tokens whose probabilities sum to top_p; 0: the likeliest",
            low=0.0,
            high=1.0,
            is_column=True,
        ),
    ] = 1.0
    min_p: Annotated[
        float,
        Number(
            "exclude tokens less likely than min_p times the most likely one",
            low=0.0,
            high=1.0,
            is_column=True,
        ),
    ] = 0.0
    repetition_penalty: Annotated[
        float,
        Number(
            "for tokens that occur in prompt or output, divides positive logits and multiplies "
            "negative ones (arXiv 1909.05858)",
            low=0.01,
            high=10.0,
            is_column=True,
        ),
    ] = 1.0
    frequency_penalty: Annotated[
        float,
        Number(
            "subtracted from a token's logit for each occurrence in the output",
            low=-2.0,
            high=2.0,
            is_column=True,
        ),
    ] = 0.0
    presence_penalty: Annotated[
        float,
        Number(
            "subtracted once if the token occurs in the output", low=-2.0, high=2.0, is_column=True
        ),
    ] = 0.0
    logit_bias: Annotated[
        Mapping[int, float],
        TokenBias(
            "added to the logits of these tokens", low=-100.0, high=100.0, max_num=MAX_LOGIT_BIAS
        ),
    ] = field(default_factory=dict)
    seed: Annotated[
        int | None,
        Integer(
            "the same seed, prompt and parameters give the same draws; none: a new seed",
            low=-(2**63),
            high=2**63 - 1,
            http_off=-1,  # vLLM's and llama.cpp's
        ),
    ] = None
    stop: Annotated[
        str | Sequence[str],
        Strings("strings that end the text and are not part of it", max_num=128, max_len=1024),
    ] = ()
    include_stop: Annotated[
        bool,
        Flag("include the stop string in the text", http_name="include_stop_str_in_output"),
    ] = False
    stop_token_ids: Annotated[
        Sequence[int],
        TokenIds("token ids that end the text and are not part of it", max_num=MAX_STOP_TOKEN_IDS),
    ] = ()
    min_tokens: Annotated[
        int, Integer("number of new tokens before which no stop condition ends the text", low=0)
    ] = 0
    ignore_eos: Annotated[bool, Flag("continue after the model's end-of-text token")] = False
    skip_special_tokens: Annotated[bool, Flag("omit special tokens from the text")] = True
    logprobs: Annotated[
        int | None,
        Integer(
            "report the log probability of each new token and of this many most likely tokens, "
            "the model's own, before any change of the logits; none: report none",
            low=0,
            high=MAX_LOGPROBS,
        ),
    ] = None
    prompt_logprobs: Annotated[
        int | None,
        Integer(
            "the same for the tokens of the prompt; the whole prompt is then computed, even if it "
            "is cached",
            low=0,
            high=MAX_LOGPROBS,
        ),
    ] = None
    top_n_sigma: Annotated[
        float,
        Number(
            "exclude tokens whose logit is more than this many standard deviations of the logits "
            "below the highest (arXiv 2411.07641); 0: exclude none",
            low=0.0,
            high=100.0,
            is_column=True,
            http_off=-1,  # llama.cpp's
        ),
    ] = 0.0
    structured_outputs: Annotated[
        StructuredOutputsParams | None,
        StructuredOutputs(
            "what the output must match: a JSON Schema, a regular expression, one of several "
            "texts, a grammar, or any JSON object; none: anything"
        ),
    ] = None
    allowed_token_ids: Annotated[
        Sequence[int],
        TokenIds("sample among these tokens only; empty: among all", max_num=MAX_ALLOWED_TOKEN_IDS),
    ] = ()

    def __post_init__(self) -> None:
        for name, param in PARAMS.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                object.__setattr__(self, name, param.check(name, value))
        self._check_together()

    def replace(self, **changes: Any) -> SamplingParams:
        """Return a copy with other values; only these are checked, and large ones are shared."""
        changed = copy(self)
        for name, value in changes.items():
            if value is not None or name not in _OPTIONAL:
                value = PARAMS[name].check(name, value)
            object.__setattr__(changed, name, value)
        changed._check_together()
        return changed

    def _check_together(self) -> None:
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"min_tokens must be at most max_tokens, {self.max_tokens}, got {self.min_tokens}",
                param="min_tokens",
            )

        if self.allowed_token_ids and self.structured_outputs is not None:
            raise InvalidRequestError(
                f"allowed_token_ids and {self.structured_outputs.param} each constrain the output; "
                "send one of them",
                param="allowed_token_ids",
            )

    @property
    def is_greedy(self) -> bool:
        return self.temperature < MIN_TEMPERATURE

    @property
    def has_penalties(self) -> bool:
        """True if logits are changed by penalties on the tokens so far."""
        return bool(
            self.repetition_penalty != 1.0 or self.frequency_penalty or self.presence_penalty
        )

    @property
    def needs_sampler_state(self) -> bool:
        """True if logits are changed by a bias, a ban, or penalties on the tokens so far."""
        return bool(self.logit_bias or self.min_tokens or self.has_penalties)


def _definitions(cls: type[SamplingParams]) -> dict[str, Param]:
    """Return the definition of each field, from its annotation."""
    hints = get_type_hints(cls, include_extras=True)
    definitions = {}
    for name in (one.name for one in fields(cls)):
        definition = get_args(hints[name])[-1]
        assert isinstance(definition, Param), name
        definitions[name] = definition
    return definitions


PARAMS: Mapping[str, Param] = _definitions(SamplingParams)  # by name, in order
# The parameters that may be None, each of which is None by default.
_OPTIONAL = frozenset(one.name for one in fields(SamplingParams) if one.default is None)
_ARGS = "\n".join(
    fill(
        f"{name}: {one.doc}; {one.accepts}.", 100, initial_indent=" " * 4, subsequent_indent=" " * 8
    )
    for name, one in PARAMS.items()
)
SamplingParams.__doc__ = (inspect.getdoc(SamplingParams) or "").replace(
    "Raises:", f"Args:\n{_ARGS}\n\nRaises:"
)
