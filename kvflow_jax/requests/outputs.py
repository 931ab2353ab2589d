"""What the engine says: text as it grows, how a request ended, and the state of a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from kvflow_jax.errors import KVFlowError
from kvflow_jax.workflow.hints import HintStatus


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
    num_cached_host_tokens: int  # of those, loaded from the host for this request
    num_computed_tokens: int  # of the prompt, those computed again after a preemption included
    num_output_tokens: int
    num_preemptions: int
    hint_status: HintStatus | None  # None where the request had no hints
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
    num_blocks_host: int = 0  # with a copy in the host tier, and
    max_blocks_host: int = 0  # how many may have one
    num_runs: int = 0  # of workflows, alive
    num_runs_held_back: int = 0  # of those, that wait for their turn
    num_steps: int = 0
    stall_s: float = 0.0  # in which requests waited for loads and nothing else ran
    num_preemptions: int = 0
    num_evicted_blocks: int = 0  # from the device
    num_backed_up_blocks: int = 0  # copied to the host, and
    num_loaded_blocks: int = 0  # back
    num_prefetched_blocks: int = 0  # ordered before a request asked for them; of those:
    num_useful_blocks: int = 0  # there when one did
    num_late_blocks: int = 0  # under way when one did
    num_wasted_blocks: int = 0  # evicted or cancelled before
    load_bytes: int = 0  # host to device, and the seconds that took
    load_s: float = 0.0
    save_bytes: int = 0  # device to host
    save_s: float = 0.0
    num_failed_transfers: int = 0
    prompt_tokens: int = 0  # of admitted requests
    cached_prompt_tokens: int = 0  # of those, found in the cache, and
    host_prompt_tokens: int = 0  # of those again, not on the device when the request began
    generation_tokens: int = 0
    num_finished: dict[str, int] = field(default_factory=dict)  # by FinishReason value
