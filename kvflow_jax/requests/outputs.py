"""The engine's outputs: new text of a request, how it ended, and statistics."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from kvflow_jax.bounds.tenant_lru import Usage
from kvflow_jax.cache.block_ages import NO_AGES, BlockAges
from kvflow_jax.errors import KVFlowError
from kvflow_jax.workflow.hints import HintStatus


class FinishReason(StrEnum):
    """Why a request ended."""

    STOP = "stop"  # an end-of-text token, a stop token or a stop string
    LENGTH = "length"  # max_tokens, or the model's context
    ABORT = "abort"  # aborted by its caller, or its caller disconnected
    ERROR = "error"  # see Output.error


@dataclass(frozen=True, slots=True)
class RequestStats:
    """Counts and times of a finished request. Times are seconds of the engine's clock."""

    num_prompt_tokens: int
    num_cached_tokens: int  # prompt tokens whose KV came from the cache, at first admission
    num_cached_host_tokens: int  # part of num_cached_tokens that was loaded from the host
    num_computed_tokens: int  # computed prompt tokens, with those computed again after preemptions
    num_output_tokens: int
    num_preemptions: int
    hint_status: HintStatus | None  # None if the request had no hints
    arrival_s: float
    first_scheduled_s: float | None  # None if it never ran
    first_token_s: float | None
    finished_s: float
    max_tokens: int  # output tokens that it could have had at most


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log probabilities of one token and of the most likely tokens at its position.

    Natural logarithms of the model's own probabilities, before sampling parameters change them.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), most likely first


@dataclass(frozen=True, slots=True)
class Output:
    """New text and tokens of one request. The last output has ``finish_reason`` and ``stats``.

    ``text`` has whole characters only. The bytes of an incomplete character come with a later
    output, and so does text that may be the beginning of a stop string. ``token_ids`` may therefore
    be ahead of ``text``.

    Attributes:
        reasoning: new text of the reasoning, of requests whose reasoning is split off. Its end
            comes before the first ``text``.
        num_reasoning_tokens: those of all tokens so far that belong to the reasoning, up to the one
            that completes its end tag.
        logprobs: one for each of ``token_ids``, if the request wants them.
        text_ends: for each of ``logprobs``, the length of ``text`` up to its token; empty: all of
            it, of an output of one token.
        prompt_logprobs: in the first output, one for each prompt token after the first, if the
            request wants them.
        stop_reason: in the last output, the stop string or stop token id that ended the text.
        completes_grammar: the text ends because its grammar allows no other token.
        hint_status: outcome of the request's hints; None if it has none.
    """

    request_id: int
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stats: RequestStats | None = None
    error: KVFlowError | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    text_ends: tuple[int, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    stop_reason: str | int | None = None
    completes_grammar: bool = False
    reasoning: str = ""
    num_reasoning_tokens: int = 0
    hint_status: HintStatus | None = None

    @property
    def ends_at_token(self) -> bool:
        """True if the last of ``token_ids`` ended the text; its own text is not in ``text``."""
        if self.completes_grammar or isinstance(self.stop_reason, str):
            return False
        return self.finish_reason is FinishReason.STOP


# Of ``TokensPerStep``; vLLM's.
STEP_TOKENS_BOUNDS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True)
class TokensPerStep:
    """A histogram of the tokens of a step.

    These are the tokens that it samples, and the prompts that it completes.

    Attributes:
        counts: steps by number of tokens: up to each of ``STEP_TOKENS_BOUNDS``, and more.
        num_tokens: of all steps.
    """

    counts: tuple[int, ...] = (0,) * (len(STEP_TOKENS_BOUNDS) + 1)
    num_tokens: int = 0

    def add(self, num_tokens: int) -> TokensPerStep:
        """Return the histogram with one step more."""
        i = bisect_left(STEP_TOKENS_BOUNDS, num_tokens)
        counts = (*self.counts[:i], self.counts[i] + 1, *self.counts[i + 1 :])
        return TokensPerStep(counts, self.num_tokens + num_tokens)


@dataclass(frozen=True, slots=True)
class DraftStats:
    """Counters of speculative decoding, which never decrease.

    Attributes:
        num_drafts: drafts that were verified.
        num_accepted_per_position: accepted drafted tokens by their position within the draft.
        num_excluded: requests that could have no drafts, because penalties change their logits.
    """

    num_drafts: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_accepted_per_position: tuple[int, ...] = ()
    num_excluded: int = 0


@dataclass(frozen=True, slots=True)
class PrefillProgress:
    """Requests whose prompts are not computed yet.

    Attributes:
        num_tokens: of their prompts.
        num_computed: the part of these that is computed, or was cached.
    """

    num_requests: int = 0
    num_tokens: int = 0
    num_computed: int = 0


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Statistics that the engine publishes at the end of each step.

    In names of fields, ``save`` and ``backed_up`` mean offloaded to the host, and ``held_back``
    means throttled by admission control.
    """

    # Gauges.
    num_running: int = 0
    num_waiting: int = 0
    num_deferred: int = 0  # waiting for another request or their run's turn, not for capacity
    num_blocks: int = 0  # usable blocks of the pool
    num_blocks_leased: int = 0  # leased by running requests
    num_blocks_cached: int = 0  # in the index, leased or not, host-only blocks included
    num_blocks_host: int = 0  # blocks with a copy in the host tier
    max_blocks_host: int = 0  # size of the host tier
    prefill: PrefillProgress = PrefillProgress()
    num_runs: int = 0  # live workflow runs that clients have named
    num_runs_held_back: int = 0  # workflow runs throttled by admission control
    tenant_state: Mapping[str, Usage] = field(default_factory=dict)  # what is kept, by its kind
    num_learned_agents: int = 0  # whose order is learned

    # Counters, which never decrease.
    num_steps: int = 0
    stall_s: float = 0.0  # time in which requests waited for loads and no step ran
    num_preemptions: int = 0
    num_evicted_blocks: int = 0  # evicted from the device
    num_backed_up_blocks: int = 0  # offloaded, device to host
    num_loaded_blocks: int = 0  # loaded, host to device
    num_prefetched_blocks: int = 0  # requested by the prefetcher; the next three are parts of it
    num_useful_blocks: int = 0  # on the device when a request needed them
    num_late_blocks: int = 0  # still loading when a request needed them
    num_wasted_blocks: int = 0  # evicted or cancelled before a request needed them
    load_bytes: int = 0  # host to device
    load_s: float = 0.0  # time in which the link loaded
    save_bytes: int = 0  # device to host
    save_s: float = 0.0  # time in which the link offloaded
    num_failed_transfers: int = 0
    prompt_tokens: int = 0  # of admitted requests
    cached_prompt_tokens: int = 0  # part of prompt_tokens that was in the cache
    host_prompt_tokens: int = 0  # part of cached_prompt_tokens that was not on the device
    generation_tokens: int = 0
    tokens_per_step: TokensPerStep = TokensPerStep()
    block_ages: BlockAges = NO_AGES
    drafts: DraftStats = DraftStats()
    num_finished: dict[str, int] = field(default_factory=dict)  # by FinishReason value
    # Histories released before their time to live, by EndedBy value.
    ended_histories: Mapping[str, int] = field(default_factory=dict)
    # Calls in a learned order, by ``Prediction`` value.
    predictions: Mapping[str, int] = field(default_factory=dict)
