"""The scheduler: continuous batching with chunked prefill.

    waiting ──admit (seq slot, cached prefix, blocks for the whole prompt)──▶ running
       ▲                                                                        │
       └──────────── preempt the last in order, when blocks run out ────────────┘

Both lists are ordered by priority, then by fair queueing between fairness keys, then by arrival. A
waiting request holds no blocks and no seq slot, so no deadlock is possible: the first request in
order can always preempt those behind it.

A request whose prefix is partly host-only is admitted, too, with blocks reserved for its prefix
and its suffix. It joins the running requests, and steps skip it until the load is done. No
other request waits for it, and it waits for no other.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import NamedTuple

import numpy as np

from kvflow_jax.cache.index import RootKey
from kvflow_jax.cache.prefix_cache import Lease, PrefixCache
from kvflow_jax.errors import IntegrityError
from kvflow_jax.requests.request import NO_SEQ_SLOT, Chunk, Request
from kvflow_jax.runtime.batch import BatchShapes

_BY_ORDER = attrgetter("order")
_BlockKey = tuple[RootKey, int | None, bytes]  # root, the block before it, its tokens


class Preempted(NamedTuple):
    """A request that is back in the queue, and how many of its tokens were computed."""

    request: Request
    num_computed: int


@dataclass(slots=True)
class StepPlan:
    """The chunks that one step computes, and the blocks that it published before computing them.

    Attributes:
        admitted: requests that start, or restart after a preemption, with this step.
        preempted: requests that are preempted to make room.
        published: (lease, its number of indexed blocks before), in order of publishing.
        prefill_lengths: tokens of each chunk that takes tiles rather than a decode row.
    """

    chunks: list[Chunk] = field(default_factory=list)
    admitted: list[Request] = field(default_factory=list)
    preempted: list[Preempted] = field(default_factory=list)
    published: list[tuple[Lease, int]] = field(default_factory=list)
    prefill_lengths: list[int] = field(default_factory=list)

    @property
    def num_steps(self) -> int:
        """Steps that the plan takes on the device."""
        return 1

    @property
    def num_draft_tokens(self) -> int:
        """Drafted tokens that the step verifies."""
        return sum(len(chunk.draft) for chunk in self.chunks)


class Scheduler:
    """Owns the waiting and running requests, with their seq slots and leases.

    Attributes:
        waiting, running: requests, sorted by ``Request.order``.
        num_host_tokens: the part of ``num_cached_tokens`` that was on the host at admission.
        uses_host_tier: False: recompute host-only blocks.
        should_load: called with (blocks to load, tokens to compute instead); returns whether to
            load.
        can_admit: called with a waiting request; returns False while its run is throttled.
    """

    def __init__(self, cache: PrefixCache, shapes: BatchShapes) -> None:
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.num_preemptions = 0
        self.num_deferred = 0  # waiting requests that the last admission passed over
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_host_tokens = 0
        self.uses_host_tier = True
        self.should_load: Callable[[int, int], bool] = lambda num_blocks, num_tokens: True
        self.can_admit: Callable[[Request], bool] = lambda request: True
        self._cache = cache
        self._shapes = shapes
        self._free_seq_slots = list(range(shapes.num_seq_slots - 1, -1, -1))
        self._decoded_last = False
        self._virtual_time = 0  # the largest virtual start of the admitted requests
        # The last virtual start of each fairness key with waiting requests.
        self._last_virtual_start: dict[str, int] = {}

    def add(self, request: Request) -> None:
        """Queue a request, with a virtual start 1 after the last of its fairness key.

        This is start-time fair queueing with requests as the unit of service. A key that queues a
        hundred requests at once does not wait longer for the first of them, and a request of
        another key that arrives later runs right after that first one.
        """
        if len(self._last_virtual_start) > 2 * len(self.waiting) + 64:
            # Entries before the virtual time no longer matter: drop them to bound the dict.
            self._last_virtual_start = {
                key: start
                for key, start in self._last_virtual_start.items()
                if start >= self._virtual_time
            }
        if not self.waiting:
            self._last_virtual_start.clear()
        request.virtual_start = max(
            self._virtual_time, self._last_virtual_start.get(request.fairness_key, -1) + 1
        )
        self._last_virtual_start[request.fairness_key] = request.virtual_start
        insort(self.waiting, request, key=_BY_ORDER)

    def remove(self, request: Request, now: float) -> None:
        """Remove a waiting or running request and release its seq slot and lease."""
        if request.lease is not None:
            self.running.remove(request)
            self._release(request, now)
        elif request in self.waiting:
            self.waiting.remove(request)

    def schedule(self, now: float) -> StepPlan:
        """Plan a step; it has no chunks if no request can run.

        Running requests come first, each with one token or the next chunk of its prompt. Then
        waiting requests are admitted while rows, seq slots and blocks last.
        """
        for request in self.running:
            if request.is_loading:
                assert request.lease is not None
                request.is_loading = self._cache.num_loading(request.lease) > 0
        if self._shapes.deterministic:
            return self._schedule_deterministic(now)
        plan = StepPlan()
        self._plan_chunks(plan, self.running, now)
        self._admit(plan, now)
        return plan

    def _schedule_deterministic(self, now: float) -> StepPlan:
        """Plan a step with either one chunk of a prompt or decode rows, alternating.

        A sequence is then always split in the same way: its prompt into tiles from its start, with
        cache hits of whole tiles, and each token after the prompt by itself, also when a preempted
        request computes them again. Only blocks of prompts are shared: KV of output tokens differs
        in the last bits from KV of the same tokens in a prompt.
        """
        plan = StepPlan()
        decoding = [r for r in self.running if r.wants_step and r.num_computed >= r.num_prompt]
        if not self._decoded_last:
            self._plan_chunks(plan, decoding, now)
        self._decoded_last = bool(plan.chunks)
        if not plan.chunks:
            prompts = [
                r for r in self.running if r.num_computed < r.num_prompt and not r.is_loading
            ]
            self._plan_chunks(plan, prompts[:1], now)
        if not plan.chunks:
            self._admit(plan, now)
        if not plan.chunks:
            self._plan_chunks(plan, [r for r in decoding if r.lease is not None], now)
        return plan

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
        if request.lease is not None and self._has_unindexed_block(request):
            tokens = self._shareable_tokens(request)
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

    @property
    def num_loading(self) -> int:
        """Number of running requests that wait for a load."""
        return sum(request.is_loading for request in self.running)

    def check_integrity(self) -> None:
        """Check the cache, and that exactly the running requests have seq slots and leases."""
        self._cache.check_integrity()
        seq_slots = sorted(self._free_seq_slots + [request.seq_slot for request in self.running])
        if seq_slots != list(range(self._shapes.num_seq_slots)):
            raise IntegrityError("a seq slot is missing or used twice")
        if any(r.lease is not None or r.seq_slot != NO_SEQ_SLOT for r in self.waiting):
            raise IntegrityError("a waiting request has a seq slot or a lease")
        leased = {int(b) for r in self.running if r.lease is not None for b in r.lease.blocks}
        if self._cache.num_leased != len(leased):
            raise IntegrityError("blocks are leased by no running request")

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
        if request.num_computed + 1 < request.num_known and self._may_hit(request):
            self._deduplicate(request, now)
        length, is_decode = self._next_length(plan, request)
        if length == 0 or not self._grow(plan, request, request.num_computed + length, now):
            return False
        start = request.num_computed
        request.num_computed += length
        request.num_prompt_computed += max(0, min(request.num_computed, request.num_prompt) - start)
        samples = request.num_computed == request.num_tokens
        request.num_in_flight += samples
        lease = request.lease
        assert lease is not None
        before = lease.num_indexed
        if self._has_unindexed_block(request):
            self._cache.publish(lease, self._shareable_tokens(request))
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

    def _may_hit(self, request: Request) -> bool:
        """True if a running request may use blocks that other requests have computed."""
        return not (request.scores_prompt or self._shapes.deterministic)

    def _num_shareable(self, request: Request) -> int:
        """Return how many leading tokens are known, written or planned, and may be indexed."""
        num_tokens = min(request.num_known, request.num_computed)
        return min(num_tokens, request.num_prompt) if self._shapes.deterministic else num_tokens

    def _shareable_tokens(self, request: Request) -> np.ndarray:
        return request.tokens[: self._num_shareable(request)]

    def _has_unindexed_block(self, request: Request) -> bool:
        """True if a running request has a full block that is not indexed."""
        assert request.lease is not None
        return self._num_shareable(request) // self._cache.page_size > request.lease.num_indexed

    def _grow(self, plan: StepPlan, request: Request, num_tokens: int, now: float) -> bool:
        """Lease blocks for ``num_tokens`` tokens, preempting the last requests in order for room.

        Returns:
            False if the request itself was preempted.
        """
        lease = request.lease
        assert lease is not None
        num_missing = -(-num_tokens // self._cache.page_size) - len(lease)
        while num_missing > 0 and not self._cache.grow(lease, num_missing, now):
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
        self.running.remove(request)
        self._release(request, now)
        preempted = Preempted(request, request.num_computed)
        request.num_computed = 0
        insort(self.waiting, request, key=_BY_ORDER)
        return preempted

    def _release(self, request: Request, now: float) -> None:
        assert request.lease is not None
        self._cache.release(request.lease, now)
        request.lease = None
        request.is_loading = False
        self._free_seq_slots.append(request.seq_slot)
        request.seq_slot = NO_SEQ_SLOT

    def _admit(self, plan: StepPlan, now: float) -> None:
        """Admit waiting requests, in order, while rows, seq slots and blocks last."""
        self.num_deferred = 0
        # Keys of the blocks that running requests compute next.
        in_progress = {key for r in self.running if (key := self._next_block(r)) is not None}
        for request in list(self.waiting):
            if not self._free_seq_slots or not self._shapes.longest_chunk(plan.prefill_lengths, 2):
                return
            if request.num_in_flight:
                self.num_deferred += 1
                continue  # preempted while a step was in flight: its token is not yet known
            if not self.can_admit(request):
                self.num_deferred += 1
                continue
            # The match leaves at least one token to compute: its logits give the first sample.
            matched = self._match(request)
            is_in_progress = self._block_key(request, matched) in in_progress
            if is_in_progress and not request.scores_prompt:
                self.num_deferred += 1
                continue  # wait for the request that computes its next block, and share the block
            if not self._has_room(request, matched):
                return
            self.waiting.remove(request)
            insort(self.running, request, key=_BY_ORDER)
            plan.admitted.append(request)
            self._virtual_time = max(self._virtual_time, request.virtual_start)
            request.seq_slot = self._free_seq_slots.pop()
            lease = self._lease_prefix(request, matched, now)
            num_blocks = -(-request.num_known // self._cache.page_size)
            if not self._cache.grow(lease, num_blocks - len(matched), now):
                raise IntegrityError("blocks counted as available could not be leased")
            if not request.is_loading:
                self._plan_chunk(plan, request, now)
            if (key := self._next_block(request)) is not None:
                in_progress.add(key)

    def _lease_prefix(self, request: Request, matched: np.ndarray, now: float) -> Lease:
        """Lease a request's cached prefix, blocks i32[n]; load the host-only ones."""
        cache = self._cache
        lease = request.lease = cache.lease(request.root, matched, now)
        num_loading = cache.num_loading(lease)
        request.num_computed = len(matched) * cache.page_size
        request.is_loading = num_loading > 0
        if request.num_cached is None:
            request.num_cached = request.num_computed
            request.num_cached_host = num_loading * cache.page_size
            self.num_prompt_tokens += request.num_prompt
            self.num_cached_tokens += request.num_cached
            self.num_host_tokens += request.num_cached_host
        return lease

    def _match(self, request: Request) -> np.ndarray:
        """Return the blocks i32[n] of the cached prefix that a waiting request should use."""
        matched = self._match_index(request)
        state = self._cache.state_of(matched)
        num_used = state.num_usable if self.uses_host_tier else state.num_on_device
        num_tokens = (num_used - state.num_valid) * self._cache.page_size
        if num_tokens and not self.should_load(num_used - state.num_on_device, num_tokens):
            num_used = state.num_valid
        matched = matched[:num_used]
        if not self._shapes.deterministic:
            return matched
        pages_per_tile = self._shapes.tile // self._cache.page_size
        return matched[: len(matched) // pages_per_tile * pages_per_tile]

    def _match_index(self, request: Request) -> np.ndarray:
        """Return the blocks i32[n] of the longest indexed prefix that leaves a token to compute."""
        if request.scores_prompt:
            return np.empty(0, np.int32)
        if not self._shapes.deterministic:
            return self._cache.match(request.root, request.known_tokens[:-1])
        return self._cache.match(request.root, request.known_tokens[: request.num_prompt - 1])

    def _has_room(self, request: Request, matched: np.ndarray) -> bool:
        """True if the whole sequence fits beside one more block for each running request."""
        num_blocks = -(-request.num_tokens // self._cache.page_size)
        return self._cache.has_room(matched, num_blocks, num_reserved=len(self.running))

    def _next_block(self, request: Request) -> _BlockKey | None:
        """Return the key of the block that a running request computes next.

        None if the block's tokens are not all known.
        """
        if request.lease is None or request.num_computed >= request.num_known:
            return None
        return self._block_key(
            request, request.lease.blocks[: request.num_computed // self._cache.page_size]
        )

    def _block_key(self, request: Request, before: np.ndarray) -> _BlockKey | None:
        """Return (root, parent block, tokens) of the block behind ``before``, i32[n], if full."""
        page = self._cache.page_size
        tokens = request.known_tokens[len(before) * page : (len(before) + 1) * page]
        if len(tokens) < page:
            return None
        return request.root, int(before[-1]) if len(before) else None, tokens.tobytes()
