"""What the engine says: text as it grows, how a request ended, and the state of a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from kvflow_jax.errors import KVFlowError


class FinishReason(StrEnum):
    STOP = "stop"  # an end-of-text or stop token, or a stop string
    LENGTH = "length"  # max_tokens or the context
    ABORT = "abort"  # the client went away, or asked for it
    ERROR = "error"  # see Output.error


@dataclass(frozen=True, slots=True)
class RequestStats:
    """Counts and times of a finished request. Times are seconds of the engine's clock."""

    num_prompt_tokens: int
    num_cached_tokens: int  # prompt tokens whose KV came from the cache, at first admission
    num_output_tokens: int
    num_preemptions: int
    arrival_s: float
    first_scheduled_s: float | None  # None where it never ran
    first_token_s: float | None
    finished_s: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely a token was to the model, and what else would have been.

    Natural logarithms of the model's own probabilities, before sampling parameters change them.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), likeliest first


@dataclass(frozen=True, slots=True)
class Output:
    """News of one request, in order. The last one has ``finish_reason`` and ``stats``.

    ``text`` holds whole characters only: bytes of a character still incomplete come with a later
    output, and so does text that may be the beginning of a stop string. ``token_ids`` may therefore
    run ahead of ``text``.

    Attributes:
        logprobs: one for each of ``token_ids``, if the request wants them.
        prompt_logprobs: in the first output, if the request wants them: one for each token of the
            prompt but the first.
        stop_reason: in the last output, the stop string or token id that ended the text.
    """

    request_id: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stats: RequestStats | None = None
    error: KVFlowError | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    stop_reason: str | int | None = None

    @property
    def ends_at_token(self) -> bool:
        """Whether the last of ``token_ids`` ended the text, of which it is no part."""
        return self.finish_reason is FinishReason.STOP and not isinstance(self.stop_reason, str)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What the engine publishes at the end of each step; counters only grow."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0  # usable blocks of the pool
    num_blocks_leased: int = 0  # held by running requests
    num_blocks_cached: int = 0  # valid in the index, leased or not
    num_steps: int = 0
    num_preemptions: int = 0
    num_evicted_blocks: int = 0
    prompt_tokens: int = 0  # of admitted requests
    cached_prompt_tokens: int = 0  # of those, found in the cache
    generation_tokens: int = 0
    num_finished: dict[str, int] = field(default_factory=dict)  # by FinishReason value
