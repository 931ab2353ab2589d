"""Speculative decoding in the engine: which requests have drafts, how long, and with what success.

Drafts are for decode rows whose token the host knows, so a step with drafts waits for the tokens of
the step before. The engine gives up running ahead for it only where the drafts are expected to give
more tokens per second: ``StepTimes`` measures what both cost, ``AcceptanceRates`` what drafts hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvflow_jax.engine.scheduler import Scheduler
from kvflow_jax.engine.step_in_flight import Sampled, StepInFlight
from kvflow_jax.engine.step_plan import StepPlan
from kvflow_jax.requests.outputs import DraftStats
from kvflow_jax.requests.request import Chunk, Request
from kvflow_jax.runtime.batch import BatchShape, BatchShapes
from kvflow_jax.speculation.acceptance import AgentRates
from kvflow_jax.speculation.config import SpeculativeConfig
from kvflow_jax.speculation.draft_tracker import DraftTracker
from kvflow_jax.speculation.drafter import Drafter
from kvflow_jax.speculation.step_times import StepTimes
from kvflow_jax.speculation.suffix_index import SuffixIndex, owner_of

# A drafted token is worth a row that would be padding if it is accepted this often.
_MIN_REACHED = 0.1


@dataclass(frozen=True, slots=True)
class _Option:
    """A chunk of a plan that may have a draft, and how likely its tokens are accepted."""

    index: int  # of the chunk within the plan
    tokens: tuple[int, ...]
    reached: list[float]


class Speculator:
    """Drafts of the running requests.

    Attributes:
        stats: counters so far, replaced with each change.
    """

    def __init__(self, config: SpeculativeConfig, shapes: BatchShapes) -> None:
        self.stats = DraftStats(num_accepted_per_position=(0,) * config.num_speculative_tokens)
        self._config, self._shapes = config, shapes
        self._is_on = config.num_speculative_tokens > 0
        index = SuffixIndex(config.num_corpus_tokens) if config.num_corpus_tokens else None
        self._drafter = Drafter(
            index, config.num_speculative_tokens, config.suffix_decoding_max_tree_depth
        )
        self._rates = AgentRates()
        self._times = StepTimes()
        self._trackers: dict[int, DraftTracker] = {}  # by id of the request

    def on_tokens(self, request: Request) -> None:
        """Take a request's new tokens, which ``Request.append`` has added."""
        if not self._is_on:
            return
        tracker = self._trackers.get(request.id)
        if tracker is None:
            if request.params.has_penalties:
                if request.num_output == 1:
                    self.stats = replace(self.stats, num_excluded=self.stats.num_excluded + 1)
                return
            tracker = self._trackers[request.id] = self._tracker(request)
        tracker.update(request.known_tokens)

    def on_finished(self, request: Request, *, is_done: bool) -> None:
        """Forget a request.

        Args:
            is_done: it ended by itself, so that its answer is worth keeping.
        """
        tracker = self._trackers.pop(request.id, None)
        if tracker is not None and is_done:
            self._drafter.insert(tracker.owner, request.known_tokens, request.num_prompt)

    def should_wait(self, step: StepInFlight, running: Iterable[Request]) -> bool:
        """True if the next step should wait for the tokens of the one in flight.

        Either that step verifies drafts, so that it is not known how many tokens it samples; or the
        drafts that the next one could have are worth more than running ahead.
        """
        if step.plan.num_draft_tokens:
            return True
        if not self._trackers:
            return False
        reached: list[float] = []
        num_decoding = 0
        for request in running:
            if request.num_computed < request.num_prompt or request.is_loading:
                continue
            num_decoding += 1
            tracker = self._trackers.get(request.id)
            if tracker is None or request.num_in_flight != 1 or len(tracker.draft.rates) < 2:
                continue
            reached += tracker.draft.reached()[1 : request.max_len - request.num_tokens]
        return bool(reached) and self._num_worthwhile(reached, num_decoding) > 0

    def add_drafts(self, plan: StepPlan, scheduler: Scheduler, now: float) -> None:
        """Add drafts to the decode rows of a plan."""
        if not self._trackers:
            return
        options = [
            option
            for index, chunk in enumerate(plan.chunks)
            if (option := self._option(index, chunk)) is not None
        ]
        if not options:
            return
        # Tokens of a draft are ever less likely: the likeliest of all are beginnings of drafts.
        ranked = sorted(
            ((reached, option.index) for option in options for reached in option.reached),
            reverse=True,
        )
        shape = self._shapes.fitting(plan.chunks)
        num_decoding = sum(chunk.is_decode for chunk in plan.chunks)
        if shape.num_tiles:
            # Rows that are there for any number of running requests.
            likely = sum(reached >= _MIN_REACHED for reached, _ in ranked)
            num = min(likely, shape.num_decode - num_decoding)
        else:
            num = self._num_worthwhile([reached for reached, _ in ranked], num_decoding)
        chosen = [index for _, index in ranked[:num]]
        for option in options:
            length = chosen.count(option.index)
            if length:
                self._add_draft(plan, scheduler, option, length, now)

    def on_verified(self, sampled: Sampled) -> None:
        """Count the accepted tokens of a draft."""
        num_draft = len(sampled.chunk.draft)
        if not num_draft:
            return
        request, num_accepted, stats = sampled.chunk.request, sampled.num_accepted, self.stats
        request.num_in_flight += num_accepted
        request.num_computed += num_accepted
        per_position = [
            count + (i < num_accepted) for i, count in enumerate(stats.num_accepted_per_position)
        ]
        self.stats = replace(
            stats,
            num_drafts=stats.num_drafts + 1,
            num_draft_tokens=stats.num_draft_tokens + num_draft,
            num_accepted_tokens=stats.num_accepted_tokens + num_accepted,
            num_accepted_per_position=tuple(per_position),
        )

    def on_step(self, shape: BatchShape, seconds: float, *, is_ahead: bool) -> None:
        """Record how long a step took, from the end of the one before."""
        if self._is_on and not shape.num_tiles:
            self._times.record(shape.num_decode, seconds, is_ahead=is_ahead)

    def _tracker(self, request: Request) -> DraftTracker:
        root, agent = request.root, request.hints.agent_id if request.hints else None
        return DraftTracker(
            self._drafter,
            owner_of(root.model, root.salt, request.tenant),
            self._rates.of(owner_of(root.model, root.salt, request.tenant, agent or "")),
            max_tokens=self._config.num_speculative_tokens,
            stop_ids=request.stop_ids,
        )

    def _option(self, index: int, chunk: Chunk) -> _Option | None:
        """Return what may be drafted behind a chunk; None if nothing."""
        request = chunk.request
        tracker = self._trackers.get(request.id)
        if tracker is None or not chunk.is_decode or chunk.start + 1 != request.num_known:
            return None
        # The last token of the context is only sampled; behind a stop token nothing is.
        length = min(len(tracker.draft.tokens), request.max_len - 1 - request.num_known)
        tokens = tracker.draft.tokens[: max(0, length)]
        if tokens and tokens[-1] in request.stop_ids:
            tokens = tokens[:-1]
        return _Option(index, tokens, tracker.draft.reached()[: len(tokens)]) if tokens else None

    def _add_draft(
        self, plan: StepPlan, scheduler: Scheduler, option: _Option, length: int, now: float
    ) -> None:
        tokens = option.tokens[:length]
        masks: tuple[np.ndarray, ...] = ()
        matcher = plan.chunks[option.index].request.matcher
        if matcher is not None:
            masks = tuple(matcher.masks_along(tokens))
            tokens = tokens[: len(masks)]
        if tokens:
            scheduler.add_draft(plan, option.index, tokens, masks, now)

    def _num_worthwhile(self, reached: Sequence[float], num_decoding: int) -> int:
        return self._times.num_worthwhile(
            sorted(reached, reverse=True), num_decoding, self._shapes.decode_sizes
        )
