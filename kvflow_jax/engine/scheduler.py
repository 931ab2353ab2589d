"""The scheduler: continuous batching with chunked prefill.

    waiting ──admit (seq slot, cached prefix, blocks for the whole prompt)──▶ running
       ▲                                                                        │
       └──────────── preempt the last in order, when blocks run out ────────────┘

Tenants take turns, the least served first: for rows of prompts in a step, and for the seq slots
and blocks of new requests (``FairQueue``). The running requests are in an order in which the last
is of the tenant that leases the most blocks, so that who takes most gives way. A waiting request
holds no blocks and no seq slot, so no deadlock is possible: the first running request can always
preempt those behind it.

A request whose prefix is partly host-only is admitted, too, with blocks reserved for its prefix
and its suffix. It joins the running requests, and steps skip it until the load is done. No
other request waits for it, and it waits for no other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import Enum, auto
from itertools import groupby
from operator import itemgetter

import numpy as np

from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.engine.fair_queue import FairQueue, Turn
from kvflow_jax.engine.fair_shares import sort_by_claim, victims_for
from kvflow_jax.engine.prefix_sharing import BlockKey, PrefixSharing
from kvflow_jax.engine.running_requests import RunningRequests
from kvflow_jax.engine.step_plan import Preempted, StepPlan
from kvflow_jax.errors import IntegrityError
from kvflow_jax.requests.request import NO_SEQ_SLOT, Chunk, Request
from kvflow_jax.runtime.batch import BatchShapes


class _Admission(Enum):
    """What became of an attempt to admit a waiting request."""

    ADMITTED = auto()
    NOBODY = auto()  # no request of the turn may start
    FULL = auto()  # rows, seq slots or blocks lack


class Scheduler:
    """Owns the waiting and running requests.

    Attributes:
        waiting: requests, fair among tenants.
        running_requests: the running requests, with their seq slots and leases.
        sharing: which cached blocks requests use.
        can_admit: called with a waiting request; returns False while its run is throttled.
    """

    def __init__(self, cache: PrefixCache, shapes: BatchShapes) -> None:
        self.waiting = FairQueue()
        self.running_requests = RunningRequests(cache, shapes.num_seq_slots)
        self.num_preemptions = 0
        self.num_deferred = 0  # waiting requests that the last admission passed over
        self.sharing = PrefixSharing(cache, shapes)
        self.can_admit: Callable[[Request], bool] = lambda request: True
        self._cache = cache
        self._shapes = shapes
        self._decoded_last = False

    @property
    def running(self) -> list[Request]:
        """The running requests, in the order of their claims to blocks."""
        return self.running_requests.requests

    def add(self, request: Request) -> None:
        """Queue a request; see ``FairQueue.add``."""
        num_matched = len(self.sharing.match(request)) * self._cache.page_size
        self.waiting.add(request, request.num_prompt - num_matched)

    def remove(self, request: Request, now: float) -> None:
        """Remove a waiting or running request and release its seq slot and lease."""
        is_running = request.lease is not None
        if is_running:
            self.running_requests.end(request, now)
        self.waiting.end(request, is_running=is_running)

    def schedule(self, now: float) -> StepPlan:
        """Plan a step; it has no chunks if no request can run.

        Requests that decode come first, each with one token. Then tenants take turns, each with
        the next chunks of its running prompts, and with waiting requests while rows, seq slots and
        blocks last. A waiting prompt may overtake a running one (``FairQueue``), unless the first
        that waits of its turn, or one of an earlier turn, would then lack a seq slot or blocks.
        """
        self.running_requests.publish_loads()
        plan = StepPlan()
        sort_by_claim(self.running)
        first = self._make_room(plan, now)
        if self._shapes.deterministic:
            self._schedule_deterministic(plan, first, now)
        else:
            self._plan_chunks(plan, [r for r in self.running if self._decodes(r)], now)
            self._plan_prompts(plan, first, now)
        return plan

    def _schedule_deterministic(self, plan: StepPlan, first: Turn | None, now: float) -> None:
        """Plan a step with either one chunk of a prompt or decode rows, alternating.

        A sequence is then always split in the same way: its prompt into tiles from its start, with
        cache hits of whole tiles, and each token after the prompt by itself, also when a preempted
        request computes them again. Only blocks of prompts are shared: KV of output tokens differs
        in the last bits from KV of the same tokens in a prompt.
        """
        decoding = [r for r in self.running if r.wants_step and self._decodes(r)]
        if not self._decoded_last:
            self._plan_chunks(plan, decoding, now)
        self._decoded_last = bool(plan.chunks)
        if not plan.chunks:
            self._plan_prompts(plan, first, now)
        if not plan.chunks:
            self._plan_chunks(plan, [r for r in decoding if r.lease is not None], now)

    def add_draft(
        self,
        plan: StepPlan,
        index: int,
        draft: tuple[int, ...],
        masks: tuple[np.ndarray, ...],
        now: float,
    ) -> bool:
        """Add a draft to a chunk of the plan, ``plan.chunks[index]``; False if blocks lack.

        No request is preempted for it. The blocks stay leased if the draft is rejected: the request
        fills them next. Only accepted tokens count as computed, so that no block is indexed with
        the KV of others.
        """
        chunk = plan.chunks[index]
        lease = chunk.request.lease
        assert lease is not None
        num_pages = -(-(chunk.start + 1 + len(draft)) // self._cache.page_size)
        num_missing = num_pages - len(lease)
        if num_missing > 0 and not self._cache.grow(lease, num_missing, now):
            return False
        pages = self._cache.pages(lease, num_pages)
        plan.chunks[index] = replace(chunk, pages=pages, draft=draft, draft_masks=masks)
        return True

    def publish(self, request: Request, now: float) -> None:
        """Index the full blocks of a running request whose tokens have reached the host.

        Call between steps: private blocks are replaced by indexed blocks of the same tokens.
        """
        if request.lease is not None and self.sharing.has_unindexed_block(request):
            tokens = self.sharing.shareable_tokens(request)
            num_written = len(tokens) // self._cache.page_size
            self._cache.deduplicate(request.lease, tokens, now, num_written=num_written)
            self._cache.publish(request.lease, tokens)

    def unpublish(self, plan: StepPlan) -> list[Request]:
        """Unpublish the blocks that a plan published, for a step that was never dispatched.

        Returns:
            The running requests that need the step, to be ended and removed: those in the plan,
            and those that lease blocks the plan was to fill.
        """
        unpublished = [
            self._cache.unpublish(lease, before) for lease, before in reversed(plan.published)
        ]
        blocks = np.concatenate([*unpublished, np.empty(0, np.int32)])
        planned = {chunk.request.id for chunk in plan.chunks}
        return [
            request
            for request in self.running
            if request.id in planned
            or (request.lease is not None and np.isin(request.lease.blocks, blocks).any())
        ]

    def requeue_failed_loads(self, blocks: np.ndarray, now: float) -> list[Preempted]:
        """Move requests that wait for a load of ``blocks`` (i32[n]) back to ``waiting``."""
        return [
            self._requeue(request, now)
            for request in list(self.running)
            if request.lease is not None and np.isin(request.lease.blocks, blocks).any()
        ]

    def check_integrity(self) -> None:
        """Check the cache, and that exactly the running requests have seq slots and leases."""
        self._cache.check_integrity()
        self.running_requests.check_integrity()
        if any(r.lease is not None or r.seq_slot != NO_SEQ_SLOT for r in self.waiting):
            raise IntegrityError("a waiting request has a seq slot or a lease")

    def _make_room(self, plan: StepPlan, now: float) -> Turn | None:
        """Preempt requests of tenants that take more than their share, for one that waits.

        Only for the waiting tenant that runs least, and only if it then fits.

        Returns:
            The turn that comes first, because room was made for it; None: no request was preempted.
        """
        queue = self.waiting
        if not queue or queue.num_tenants < 2:
            return None
        turn = min(queue.turns(), key=lambda turn: (-turn[0], queue.num_running(turn[1])))
        request = self._first_waiting(turn)
        if request is None:
            return None
        victims = self._victims_for(request)
        for victim in victims:
            plan.preempted.append(self._preempt(victim, now))
        return turn if victims else None

    def _victims_for(self, request: Request) -> list[Request]:
        """Return whom to preempt for a waiting request; see ``fair_shares.victims_for``."""
        cache, matched = self._cache, self.sharing.match(request)
        num_blocks = -(-request.num_tokens // cache.page_size)

        def num_freed(victim: Request) -> int:
            assert victim.lease is not None
            return cache.num_unshared(victim.lease) + 1  # the block reserved for it

        return victims_for(
            request,
            self.running,
            num_blocks=num_blocks,
            blocks_short=cache.num_missing(
                matched,
                num_blocks,
                num_reserved=len(self.running),
                tenant=request.root.tenant,
            ),
            slots_short=int(not self.running_requests.num_free_seq_slots),
            equal_share=cache.num_pages / self.waiting.num_tenants,
            num_freed=num_freed,
        )

    def _plan_prompts(self, plan: StepPlan, first: Turn | None, now: float) -> None:
        """Plan chunks of running prompts and admit waiting requests, by turns.

        Args:
            first: whose turn comes before all others.
        """
        self.num_deferred = 0
        prompts: defaultdict[Turn, list[Request]] = defaultdict(list)
        for request in self.running:
            if not self._decodes(request):
                prompts[request.rank, request.share].append(request)
        turns = self.waiting.turns(prompts)
        if first is not None:
            turns.sort(key=lambda turn: (-turn[0], turn != first))  # stable
        waiting = {turn: iter(self.waiting.of(turn)) for turn in turns}
        outcome = _Admission.ADMITTED
        for _, of_rank in groupby(turns, key=itemgetter(0)):
            open_turns = list(of_rank)
            for turn in list(open_turns):
                has_room = outcome is not _Admission.FULL
                self._plan_running_prompts(plan, turn, prompts[turn], now, may_overtake=has_room)
                if has_room:
                    outcome = self._admit_next(plan, waiting[turn], now)
            while open_turns and outcome is not _Admission.FULL:
                for turn in list(open_turns):
                    outcome = self._admit_next(plan, waiting[turn], now)
                    if outcome is _Admission.FULL:
                        break
                    if outcome is _Admission.NOBODY:
                        open_turns.remove(turn)
        self._count_prompts(plan, prompts)

    def _plan_running_prompts(
        self,
        plan: StepPlan,
        turn: Turn,
        prompts: Sequence[Request],
        now: float,
        *,
        may_overtake: bool,
    ) -> None:
        """Plan chunks of running prompts of a turn, and of waiting ones that overtake them.

        Args:
            may_overtake: False while a request of an earlier turn waits for blocks or a seq slot.
        """
        overtaking: list[Request] = []
        if may_overtake and self.running_requests.num_free_seq_slots:
            overtaking = self.waiting.overtaking(turn, prompts)
        in_progress: set[BlockKey] | None = None
        first: Request | None = None  # of those that wait, once it is asked for
        is_full = False
        for request in sorted([*prompts, *overtaking], key=lambda request: request.prompt_order):
            if request.lease is None:
                first = first or self._first_waiting(turn)
                # If one lacks room beside the first, so would the next.
                if first is None or (is_full and request is not first):
                    continue
                if not self._may_start(request):
                    continue
            if not self._has_rows(plan):
                return
            if request.lease is not None:
                self._plan_chunks(plan, [request], now)
                in_progress = None
                continue
            if in_progress is None:
                in_progress = self._blocks_in_progress()
            assert first is not None
            outcome = self._overtake(plan, request, first, in_progress, now)
            if outcome is _Admission.ADMITTED:
                in_progress = first = None
            is_full |= outcome is _Admission.FULL

    def _first_waiting(self, turn: Turn) -> Request | None:
        """Return the first waiting request of a turn that may start."""
        return next((r for r in self.waiting.of(turn) if self._may_start(r)), None)

    def _overtake(
        self,
        plan: StepPlan,
        request: Request,
        first: Request,
        in_progress: set[BlockKey],
        now: float,
    ) -> _Admission:
        """Admit a waiting request before the first of its turn, if that one loses nothing."""
        num_slots, num_blocks = 1, 0
        if first is not request:
            num_slots, num_blocks = 2, -(-first.num_tokens // self._cache.page_size) + 1
        if self.running_requests.num_free_seq_slots < num_slots:
            return _Admission.FULL
        return self._try_admit(plan, request, in_progress, now, num_reserved=num_blocks)

    def _count_prompts(self, plan: StepPlan, prompts: Mapping[Turn, Sequence[Request]]) -> None:
        """Count the prompt tokens of a plan as service of its tenants."""
        num_running = Counter(request.share for request in plan.admitted)
        for (_, tenant), running in prompts.items():
            num_running[tenant] += len(running)
        num_tokens = Counter[str]()
        for chunk in plan.chunks:
            if not chunk.is_decode:
                num_tokens[chunk.request.share] += chunk.length
        for tenant, num in num_tokens.items():
            self.waiting.serve_prompts(tenant, num, num_running[tenant])

    def _decodes(self, request: Request) -> bool:
        """True if the next chunk of a running request takes a decode row."""
        if self._shapes.deterministic:
            return request.num_computed >= request.num_prompt
        return request.num_tokens - request.num_computed <= 1

    def _may_start(self, request: Request) -> bool:
        """True if a waiting request waits for nothing but room.

        One that was preempted while a step was in flight waits for its token, which is not known.
        """
        return not request.num_in_flight and self.can_admit(request)

    def _plan_chunks(self, plan: StepPlan, requests: Sequence[Request], now: float) -> None:
        for request in list(requests):
            # A request earlier in the list may have preempted this one.
            if request.lease is not None and request.wants_step and not request.is_loading:
                self._plan_chunk(plan, request, now)

    def _next_length(self, plan: StepPlan, request: Request) -> tuple[int, bool]:
        """Return the tokens of a request's next chunk, and whether it takes a decode row.

        0 tokens if the step has no rows left for it.
        """
        length = request.num_tokens - request.num_computed
        if self._shapes.deterministic:
            length = request.num_prompt - request.num_computed
            if length <= 0:
                return 1, True
        elif length == 1:
            return 1, True
        return self._shapes.longest_chunk(plan.prefill_lengths, length), False

    def _plan_chunk(self, plan: StepPlan, request: Request, now: float) -> bool:
        """Add the next chunk of a running request to the plan; False if rows or blocks lack."""
        if request.num_computed + 1 < request.num_known and self.sharing.may_hit(request):
            self._deduplicate(request, now)
        length, is_decode = self._next_length(plan, request)
        if length == 0 or not self._grow(plan, request, request.num_computed + length, now):
            return False
        start = request.num_computed
        request.num_computed += length
        self.waiting.serve(request.share, length)
        request.num_prompt_computed += max(0, min(request.num_computed, request.num_prompt) - start)
        samples = request.num_computed == request.num_tokens
        request.num_in_flight += samples
        lease = request.lease
        assert lease is not None
        before = lease.num_indexed
        if self.sharing.has_unindexed_block(request):
            self._cache.publish(lease, self.sharing.shareable_tokens(request))
            if lease.num_indexed > before:
                plan.published.append((lease, before))
        num_pages = -(-request.num_computed // self._cache.page_size)
        pages = self._cache.pages(lease, num_pages)
        plan.chunks.append(Chunk(request, start, length, pages, samples, is_decode))
        if not is_decode:
            plan.prefill_lengths.append(length)
        if request.first_scheduled_s is None:
            request.first_scheduled_s = now
        return True

    def _deduplicate(self, request: Request, now: float) -> None:
        """Skip tokens of the prompt that another request has computed since the last chunk."""
        assert request.lease is not None
        num_written = request.num_computed // self._cache.page_size
        self._cache.deduplicate(
            request.lease, request.known_tokens[:-1], now, num_written=num_written
        )
        num_shared = request.lease.num_indexed * self._cache.page_size
        request.num_computed = max(request.num_computed, num_shared)

    def _grow(self, plan: StepPlan, request: Request, num_tokens: int, now: float) -> bool:
        """Lease blocks for ``num_tokens`` tokens, preempting the last requests in order for room.

        Returns:
            False if the request itself was preempted.
        """
        while not self.running_requests.grow(request, num_tokens, now):
            # Requests are planned in order, so the victim is not yet in the plan.
            victim = self.running[-1]
            plan.preempted.append(self._preempt(victim, now))
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request, now: float) -> Preempted:
        request.num_preemptions += 1
        self.num_preemptions += 1
        return self._requeue(request, now)

    def _requeue(self, request: Request, now: float) -> Preempted:
        self.running_requests.end(request, now)
        preempted = Preempted(request, request.num_computed)
        request.num_computed = 0
        self.waiting.requeue(request)
        return preempted

    def _admit_next(self, plan: StepPlan, waiting: Iterator[Request], now: float) -> _Admission:
        """Admit the next of the waiting requests of a turn that may start.

        A request too large for the free blocks is not overtaken, so that it is not starved.
        """
        in_progress: set[BlockKey] | None = None
        for request in waiting:
            if request.lease is not None:
                continue  # has overtaken
            if not self.running_requests.num_free_seq_slots or not self._has_rows(plan):
                return _Admission.FULL
            if not self._may_start(request):
                self.num_deferred += 1
                continue
            if in_progress is None:
                in_progress = self._blocks_in_progress()
            outcome = self._try_admit(plan, request, in_progress, now)
            if outcome is not _Admission.NOBODY:
                return outcome
            self.num_deferred += 1
        return _Admission.NOBODY

    def _has_rows(self, plan: StepPlan) -> bool:
        """True if the step has rows for another chunk of a prompt."""
        return self._shapes.longest_chunk(plan.prefill_lengths, 2) > 0

    def _blocks_in_progress(self) -> set[BlockKey]:
        """Return the keys of the blocks that running requests compute next."""
        return {key for request in self.running if (key := self.sharing.next_block(request))}

    def _try_admit(
        self,
        plan: StepPlan,
        request: Request,
        in_progress: set[BlockKey],
        now: float,
        *,
        num_reserved: int = 0,
    ) -> _Admission:
        """Admit a waiting request, for which there is a seq slot, and plan its first chunk.

        Args:
            in_progress: see ``_blocks_in_progress``.
            num_reserved: blocks to leave to others.

        Returns:
            NOBODY if a running request computes its next block, which it will share.
        """
        # The match leaves at least one token to compute: its logits give the first sample.
        matched = self.sharing.match(request)
        is_in_progress = self.sharing.block_key(request, matched) in in_progress
        if is_in_progress and not request.scores_prompt:
            return _Admission.NOBODY
        if not self.running_requests.has_room(request, matched, num_reserved):
            return _Admission.FULL
        self.waiting.admit(request)
        self.running_requests.start(request, matched, now)
        plan.admitted.append(request)
        if not request.is_loading:
            self._plan_chunk(plan, request, now)
        return _Admission.ADMITTED
