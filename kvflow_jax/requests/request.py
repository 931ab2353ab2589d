"""A request as the engine holds it: its tokens, how far they are computed, what it leases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kvflow_jax.cache.index import RootKey
from kvflow_jax.cache.prefix_cache import Lease
from kvflow_jax.models.tokenizer import Detokenizer
from kvflow_jax.requests.outputs import FinishReason, Output, RequestStats, TokenLogprobs
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.requests.stop_strings import StopStrings
from kvflow_jax.workflow.hints import Hints, HintStatus

NO_SEQ_SLOT = -1


@dataclass(frozen=True, slots=True)
class TokenDelta:
    """What one token adds to an answer."""

    text: str
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


class Request:
    """One sequence that grows from a prompt.

        tokens:  prompt ........ | outputs known to the host | in flight on the device
                 0               num_prompt                  num_known       num_tokens

    ``num_computed`` of them have their KV in the leased blocks, or will once the steps dispatched
    so far have run.
    """

    def __init__(
        self,
        request_id: int,
        prompt_ids: np.ndarray,  # i32[num_prompt]
        params: SamplingParams,
        on_output: Callable[[Output], None],
        *,
        root: RootKey,
        priority: int,
        arrival_s: float,
        max_len: int,  # tokens, prompt included, at which it ends
        stop_ids: frozenset[int],
        seed: tuple[int, int],  # two u32
        detokenizer: Detokenizer | None,
        stop_strings: StopStrings | None = None,
        fairness_key: str = "",
        hints: Hints | None = None,
    ) -> None:
        self.hints = hints
        # Whose its agent, run and session are.
        self.tenant = fairness_key if hints is None or hints.tenant is None else hints.tenant
        self.hint_status: HintStatus | None = None
        self.id = request_id
        self.params = params
        self.on_output = on_output
        self.root = root
        self.max_len = max_len
        self.stop_ids = stop_ids
        self.seed = seed
        self.detokenizer = detokenizer
        self.stop_strings = stop_strings
        self.fairness_key = fairness_key
        self.priority = priority
        self.virtual_start = 0  # among requests of equal priority; the scheduler's to give

        self.num_prompt = len(prompt_ids)
        self.num_known = self.num_prompt
        self.num_in_flight = 0
        self.num_prompt_computed = 0  # tokens, those computed again after a preemption included
        self.num_computed = 0
        self.tokens = np.empty(self.num_prompt + 16, np.int32)
        self.tokens[: self.num_prompt] = prompt_ids

        self.prompt_logprobs: list[TokenLogprobs] = []  # of the tokens from the second on

        self.block_hashes: list[int] = []  # as far as ``block_hashes.block_hashes`` has made them

        self.sampling_row: tuple[np.ndarray, np.ndarray] | None = None  # kept by ``batch``

        self.lease: Lease | None = None
        self.seq_slot = NO_SEQ_SLOT
        self.is_loading = False  # part of its prefix is still on its way to the device
        self.finish_reason: FinishReason | None = None

        self.arrival_s = arrival_s
        self.first_scheduled_s: float | None = None
        self.first_token_s: float | None = None
        self.num_cached: int | None = None  # prompt tokens found cached, at first admission
        self.num_cached_host = 0  # of those, not on the device then
        self.num_preemptions = 0

    @property
    def order(self) -> tuple[int, int, int]:
        """Lowest runs first: higher priority, then the client's turn, then arrival."""
        return -self.priority, self.virtual_start, self.id

    @property
    def scores_prompt(self) -> bool:
        """Whether its prompt must be computed whole, and no hit may shorten it."""
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
        """Whether a step can do something for it: tokens to compute, and room for one more."""
        return self.num_computed < self.num_tokens < self.max_len

    @property
    def known(self) -> np.ndarray:
        """i32[num_known], prompt and output."""
        return self.tokens[: self.num_known]

    def append(self, token: int) -> None:
        """Note the token that the oldest step in flight sampled."""
        if self.num_known == len(self.tokens):
            self.tokens = np.concatenate([self.tokens, np.empty_like(self.tokens)])
        self.tokens[self.num_known] = token
        self.num_known += 1
        self.num_in_flight -= 1

    def take(self, token: int) -> TokenDelta:
        """What an appended token means: the text it completes, and whether it is the last."""
        may_stop = self.num_output >= self.params.min_tokens
        if token in self.stop_ids and may_stop:
            # The token that ends a text is no part of it; the end-of-text token needs no naming.
            named = token if token in self.params.stop_token_ids else None
            return TokenDelta(self.rest_of_text(), FinishReason.STOP, named)
        text = self.detokenizer.push([token]) if self.detokenizer else ""
        is_last = self.num_known == self.max_len
        if is_last and self.detokenizer is not None:
            text += self.detokenizer.flush()
        if self.stop_strings is not None:
            text, stop = self.stop_strings.push(text, may_stop=may_stop)
            if stop is not None:
                return TokenDelta(text, FinishReason.STOP, stop)
            if is_last:
                text += self.stop_strings.flush()
        return TokenDelta(text, FinishReason.LENGTH if is_last else None)

    def rest_of_text(self) -> str:
        """Text that was waiting for tokens that will not come."""
        text = self.detokenizer.flush() if self.detokenizer else ""
        if self.stop_strings is None:
            return text
        text, stop = self.stop_strings.push(text)
        return text if stop is not None else text + self.stop_strings.flush()

    def stats(self, now: float) -> RequestStats:
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
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens ``start`` to ``start + length`` of a request, computed by one step.

    Args:
        pages: i32[n], the pool's pages of its sequence up to the end of the chunk.
        samples: whether the step samples the token that follows.
        is_decode: whether it takes a decode row, one token, rather than tiles.
    """

    request: Request
    start: int
    length: int
    pages: np.ndarray
    samples: bool
    is_decode: bool
