"""A request in the engine: its tokens, how many of them are computed, and its lease."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from kvflow_jax.cache.index import RootKey
from kvflow_jax.cache.prefix_cache import Lease
from kvflow_jax.models.tokenizer import Detokenizer
from kvflow_jax.reasoning.splitter import ReasoningSplitter
from kvflow_jax.requests.outputs import FinishReason, Output, RequestStats, TokenLogprobs
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.stop_strings import StopStrings
from kvflow_jax.workflow.hints import HintStatus

NO_SEQ_SLOT = -1


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """The text that one token adds, and why the request ends with it, if it does."""

    text: str
    reasoning: str = ""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    completes_grammar: bool = False


class Request:
    """One sequence: a prompt and the tokens sampled so far.

        tokens:  prompt ........ | outputs known to the host | in flight on the device
                 0               num_prompt                  num_known       num_tokens

    The KV of the first ``num_computed`` tokens is in the leased blocks once the steps dispatched so
    far have run.

    Attributes:
        share: the tenant whose share of the engine it takes.
        tenant: whose agents, runs and sessions the hints name.
        virtual_start: its start in the virtual time of fair queueing between the users of a
            tenant, set by ``FairQueue``.
        virtual_finish: when its prompt would end if the prompts of its tenant shared the rows
            equally, in tokens that each of them gets; set by ``FairQueue``.
        hints: its caller's; once it was added, with what was recognised beside them.
        num_in_flight: tokens that dispatched steps sample, unknown to the host.
        num_prompt_computed: computed prompt tokens, with those computed again after preemptions.
        num_reasoning: output tokens of its reasoning, up to the one that completes the end tag.
        prompt_logprobs: of the prompt tokens from the second on.
        block_hashes: hashes that ``block_hashes.block_hashes`` has computed.
        sampling_row: sampling parameters as arrays, cached by ``runtime.batch``.
        matcher: its state within its grammar, past all known output tokens; None: no grammar.
        is_loading: part of its prefix is being loaded to the device.
        num_cached: prompt tokens found in the cache at first admission; None: not yet admitted.
        num_cached_host: the part of ``num_cached`` that was not on the device.
    """

    def __init__(
        self,
        spec: RequestSpec,
        on_output: Callable[[Output], None],
        *,
        request_id: int,
        arrival_s: float,
        root: RootKey,
        max_len: int,  # maximum number of tokens, prompt and output
        stop_ids: frozenset[int],
        seed: tuple[int, int],  # two u32
        detokenizer: Detokenizer | None,
        stop_strings: StopStrings | None = None,
        splitter: ReasoningSplitter | None = None,
        allowed_tokens: np.ndarray | None = None,  # a mask as of ``Matcher``; None: all
    ) -> None:
        self.params = spec.params
        self.priority = spec.priority
        self.rank = spec.rank
        self.share, self.user = spec.tenant, spec.user
        self.tenant = spec.agents_tenant
        self.hints = spec.hints
        self.num_system, self.choice = spec.num_system, spec.choice
        self.hint_status: HintStatus | None = None

        self.id = request_id
        self.on_output = on_output
        self.root = root
        self.max_len = max_len
        self.stop_ids = stop_ids
        self.seed = seed
        self.matcher = None if spec.grammar is None else spec.grammar.clone()
        self._allowed_tokens = allowed_tokens
        self.detokenizer = detokenizer
        self.stop_strings = stop_strings
        self.splitter = splitter
        self.virtual_start = 0
        self.virtual_finish = 0.0

        self.num_prompt = len(spec.prompt_ids)
        self.num_known = self.num_prompt
        self.num_in_flight = 0
        self.num_prompt_computed = 0
        self.num_reasoning = 0
        self.num_computed = 0
        self.tokens = np.empty(self.num_prompt + 16, np.int32)
        self.tokens[: self.num_prompt] = spec.prompt_ids
        self.prompt_logprobs: list[TokenLogprobs] = []

        self.block_hashes: list[int] = []
        self.sampling_row: tuple[np.ndarray, np.ndarray] | None = None

        self.lease: Lease | None = None
        self.seq_slot = NO_SEQ_SLOT
        self.is_loading = False
        self.finish_reason: FinishReason | None = None

        self.arrival_s = arrival_s
        self.first_scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.progress_logged_s: float | None = None
        self.num_cached: int | None = None
        self.num_cached_host = 0
        self.num_preemptions = 0

    @property
    def order(self) -> tuple[int, int, int]:
        """The order within a tenant: higher priority first, then fair queueing, then arrival."""
        return -self.priority, self.virtual_start, self.id

    @property
    def prompt_order(self) -> tuple[int, float, int]:
        """The order in which prompts of a tenant take rows; see ``FairQueue``."""
        return -self.priority, self.virtual_finish, self.id

    @property
    def scores_prompt(self) -> bool:
        """True if all prompt tokens must be computed, without cache hits, to score them."""
        return self.params.prompt_logprobs is not None

    @property
    def num_tokens(self) -> int:
        return self.num_known + self.num_in_flight

    @property
    def num_output(self) -> int:
        return self.num_known - self.num_prompt

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def wants_step(self) -> bool:
        """True if it has tokens to compute and may sample another.

        The mask of the next sample follows from the last: with a grammar the host must know it.
        """
        if self.matcher is not None and self.num_in_flight:
            return False
        return self.num_computed < self.num_tokens < self.max_len

    @property
    def token_mask(self) -> np.ndarray | None:
        """The tokens that may come next, as ``Matcher.mask``; None: all."""
        return self._allowed_tokens if self.matcher is None else self.matcher.mask

    @property
    def known_tokens(self) -> np.ndarray:
        """The tokens of prompt and output that the host knows, i32[num_known]."""
        return self.tokens[: self.num_known]

    def append(self, token: int) -> None:
        """Append the token that the oldest step in flight has sampled."""
        if self.num_known == len(self.tokens):
            self.tokens = np.concatenate([self.tokens, np.empty_like(self.tokens)])
        self.tokens[self.num_known] = token
        self.num_known += 1
        self.num_in_flight -= 1

    def detokenize(self, token: int) -> TokenDelta:
        """Return the text that the token just appended completes, and whether it is the last.

        Raises:
            StepFailedError: the grammar of the request cannot be followed any further.
        """
        may_stop = self.num_output >= self.params.min_tokens
        if token in self.stop_ids and may_stop:
            # Only a stop token of the caller is a stop reason; the end-of-text token is not.
            stop_reason = token if token in self.params.stop_token_ids else None
            last = self.flush()
            return replace(last, finish_reason=FinishReason.STOP, stop_reason=stop_reason)
        if may_stop and (hidden := self._hidden_stop(token)) is not None:
            passed, hidden_stop = hidden
            last = self.flush()
            return replace(
                last,
                text=last.text + passed,
                finish_reason=FinishReason.STOP,
                stop_reason=hidden_stop,
            )
        is_complete = self.matcher is not None and self.matcher.accept(token)
        text = self.detokenizer.push([token]) if self.detokenizer else ""
        is_last = is_complete or self.num_known == self.max_len
        if is_last and self.detokenizer is not None:
            text += self.detokenizer.flush()
        reasoning, text = self._split(text, is_last=is_last)
        if self.stop_strings is not None:
            text, stop = self.stop_strings.push(text, may_stop=may_stop)
            if stop is not None:
                return TokenDelta(text, reasoning, FinishReason.STOP, stop)
            if is_last:
                text += self.stop_strings.flush()
        if is_complete:
            return TokenDelta(text, reasoning, FinishReason.STOP, completes_grammar=True)
        return TokenDelta(text, reasoning, FinishReason.LENGTH if is_last else None)

    def flush(self) -> TokenDelta:
        """Return the pending text at the end of the request, up to a stop string."""
        text = self.detokenizer.flush() if self.detokenizer else ""
        reasoning, text = self._split(text, is_last=True)
        if self.stop_strings is not None:
            text, stop = self.stop_strings.push(text)
            if stop is None:
                text += self.stop_strings.flush()
        return TokenDelta(text, reasoning)

    def stats(self, now: float) -> RequestStats:
        """Return the statistics of a request that ends at ``now``."""
        return RequestStats(
            num_prompt_tokens=self.num_prompt,
            num_cached_tokens=self.num_cached or 0,
            num_cached_host_tokens=self.num_cached_host,
            num_computed_tokens=self.num_prompt_computed,
            num_output_tokens=self.num_output,
            num_preemptions=self.num_preemptions,
            hint_status=self.hint_status,
            arrival_s=self.arrival_s,
            first_scheduled_s=self.first_scheduled_s,
            first_token_s=self.first_token_s,
            finished_s=now,
            max_tokens=self.max_len - self.num_prompt,
        )

    def _hidden_stop(self, token: int) -> tuple[str, str] | None:
        """Return ``StopStrings.hidden_stop``; None within the reasoning."""
        splitter = self.splitter
        is_in_reasoning = splitter and splitter.has_reasoning and not splitter.is_in_answer
        if self.stop_strings is None or is_in_reasoning:
            return None
        return self.stop_strings.hidden_stop(token)

    def _split(self, text: str, *, is_last: bool) -> tuple[str, str]:
        """Return the parts of new text that are reasoning and answer; count the former's token."""
        splitter = self.splitter
        if splitter is None:
            return "", text
        was_in_answer = splitter.is_in_answer
        parts = splitter.push(text, is_last=is_last)
        if splitter.has_reasoning and not was_in_answer:
            self.num_reasoning = self.num_output
        return parts


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens ``start`` to ``start + length`` of a request, computed by one step.

    Args:
        pages: i32[n], pages of the request's sequence up to the end of the chunk and its draft.
        samples: the step samples the token behind the chunk.
        is_decode: the chunk takes a decode row (one token), not tiles.
        draft: a guess of the tokens behind that of a decode row. Each takes a row of its own, so
            that the step samples a token behind each.
        draft_masks: with a grammar, the token mask behind each drafted token, as ``Matcher.mask``.
    """

    request: Request
    start: int
    length: int
    pages: np.ndarray
    samples: bool
    is_decode: bool
    draft: tuple[int, ...] = ()
    draft_masks: tuple[np.ndarray, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows that the samples of the chunk take: one, and one for each drafted token."""
        return 1 + len(self.draft)
