"""Which requests run in the next step: continuous batching with chunked prefill.

    waiting ──admit (slot, cached prefix, blocks for the whole prompt)──▶ running
       ▲                                                                    │
       └──────────────── preempt the last in order, when blocks run out ────┘

Both lists are ordered by priority; then clients take turns; then by arrival. A waiting request
holds nothing, so nothing can deadlock: the first in order always gets the blocks of those behind
it.

Where part of its prefix is on the host alone, a request is admitted all the same: with its prefix
and its suffix reserved it waits among the running for the load, and steps pass it over until the
load has landed. Nobody waits for it, and it waits for nobody.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, DeviceState
from kvflow_jax.cache.index import RootKey
from kvflow_jax.cache.prefix_cache import Lease, PrefixCache
from kvflow_jax.errors import IntegrityError
from kvflow_jax.requests.request import NO_SEQ_SLOT, Chunk, Request
from kvflow_jax.runtime.batch import BatchShapes

_BY_ORDER = attrgetter("order")


@dataclass(slots=True)
class StepPlan:
    """What one step computes, and what it put into the index ahead of computing it."""

    chunks: list[Chunk] = field(default_factory=list)
    admitted: list[Request] = field(default_factory=list)
    published: list[tuple[Lease, int]] = field(default_factory=list)  # (lease, blocks before)
    prefill_lengths: list[int] = field(default_factory=list)  # of chunks of more than one token
    num_repeats: int = 1  # of a decode step, each chunk going on where it ended


class Scheduler:
    """Owns the waiting and the running requests, their slots and their leases."""

    def __init__(self, cache: PrefixCache, shapes: BatchShapes) -> None:
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_host_tokens = 0  # of those, loaded from the host for the request
        self.preempted: list[
            tuple[Request, int]
        ] = []  # since asked, and the tokens computed of each
        self.uses_host = True  # False: what is on the host alone is computed anew
        # (blocks to be loaded, tokens to be computed instead) -> whether to load
        self.should_load: Callable[[int, int], bool] = lambda num_blocks, num_tokens: True
        # whether a waiting request may begin, as far as its run is concerned
        self.can_admit: Callable[[Request], bool] = lambda request: True
        self._cache = cache
        self._shapes = shapes
        self._free_seq_slots = list(range(shapes.num_seq_slots - 1, -1, -1))
        self._decoded_last = False
        self._virtual_time = 0  # of those admitted last
        self._last_virtual_start: dict[str, int] = {}  # of each client with requests waiting

    def add(self, request: Request) -> None:
        """Queue a request behind its client's others, one turn later each.

        Who asks for a hundred at once thus waits no longer for the first, and lets a newcomer in
        after it: start-time fair queueing, with requests as the unit.
        """
        if len(self._last_virtual_start) > 2 * len(self.waiting) + 64:
            # Turns that are over say nothing more.
            later = (
                (who, turn)
                for who, turn in self._last_virtual_start.items()
                if turn >= self._virtual_time
            )
            self._last_virtual_start = dict(later)
        if not self.waiting:
            self._last_virtual_start.clear()
        request.virtual_start = max(
            self._virtual_time, self._last_virtual_start.get(request.fairness_key, -1) + 1
        )
        self._last_virtual_start[request.fairness_key] = request.virtual_start
        insort(self.waiting, request, key=_BY_ORDER)

    def remove(self, request: Request, now: float) -> None:
        """Take a request out, wherever it is, and give up what it holds."""
        if request.lease is not None:
            self.running.remove(request)
            self._release(request, now)
        elif request in self.waiting:
            self.waiting.remove(request)

    def schedule(self, now: float) -> StepPlan | None:
        """Plan a step; None where no request can run.

        Running requests come first, one token or the next chunk of their prompt each; then
        waiting ones are admitted while rows, slots and blocks last.
        """
        for request in self.running:
            if request.is_loading:
                assert request.lease is not None
                request.is_loading = self._cache.residency.is_loading(request.lease.blocks)
        if self._shapes.deterministic:
            return self._schedule_apart(now)
        plan = StepPlan()
        self._plan_chunks(plan, self.running, now)
        self._admit(plan, now)
        return plan if plan.chunks else None

    def _schedule_apart(self, now: float) -> StepPlan | None:
        """Plan a step that either computes one chunk of a prompt or decodes, in turns.

        A sequence is then always cut alike: its prompt into tiles from its start, each hit as long
        as whole tiles, and every token after the prompt by itself, also when a preempted request
        computes them again. Only blocks of prompts are shared: those of outputs differ in the last
        bits from what a prompt with the same tokens would hold.
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
        return plan if plan.chunks else None

    def most_repeats(self, plan: StepPlan) -> int:
        """How often a planned step may be run before it could be another: 1 unless all decode."""
        if plan.prefill_lengths or plan.admitted or self._shapes.deterministic:
            return 1
        if any(request.num_in_flight for request in self.waiting):
            return 1  # it can go on when that has been sampled
        return 1 + min(r.max_len - r.num_tokens for r in (one.request for one in plan.chunks))

    def repeat(self, plan: StepPlan, num_repeats: int, now: float) -> None:
        """Run a planned decode step so often, as far as there are blocks without preemption."""
        page, num_available = self._cache.page_size, self._cache.num_available
        leases = [(chunk.request.lease, chunk.start) for chunk in plan.chunks]

        def num_short(count: int) -> list[int]:
            return [
                max(0, -(-(start + count) // page) - len(lease or ())) for lease, start in leases
            ]

        while num_repeats > 1 and sum(num_short(num_repeats)) > num_available:
            num_repeats //= 2
        if num_repeats == 1:
            return
        plan.num_repeats = num_repeats
        for i, (chunk, short) in enumerate(zip(plan.chunks, num_short(num_repeats), strict=True)):
            request, lease = chunk.request, chunk.request.lease
            assert lease is not None
            if short and not self._cache.grow(lease, short, now):
                raise IntegrityError("blocks counted as available cannot be had")
            request.num_computed += num_repeats - 1
            request.num_in_flight += num_repeats - 1
            num_pages = -(-request.num_computed // page)
            plan.chunks[i] = replace(chunk, pages=self._cache.table.page[lease.blocks[:num_pages]])

    def publish(self, request: Request, now: float) -> None:
        """Index the blocks of a running request whose tokens the host has come to know.

        Call between steps: copies of what others have indexed are given up for theirs.
        """
        if request.lease is not None and self._has_news(request):
            tokens = self._writable(request)
            num_written = len(tokens) // self._cache.page_size
            self._cache.deduplicate(request.lease, tokens, now, num_written=num_written)
            self._cache.publish(request.lease, tokens, now)

    def retract(self, plan: StepPlan) -> list[Request]:
        """Take back what a plan published, for a step that was never dispatched.

        Returns:
            The running requests that counted on it, to be ended and removed: those planned, and
            those that were given blocks the plan was to fill.
        """
        void = [self._cache.unpublish(lease, before) for lease, before in reversed(plan.published)]
        blocks = np.concatenate([*void, np.empty(0, np.int32)])
        planned = {chunk.request.id for chunk in plan.chunks}
        return [
            request
            for request in self.running
            if request.id in planned
            or (request.lease is not None and np.isin(request.lease.blocks, blocks).any())
        ]

    def give_up_loads(self, blocks: np.ndarray, now: float) -> None:
        """Let requests that wait for a load of ``blocks`` (i32[n]) wait for their turn anew."""
        for request in list(self.running):
            if request.lease is not None and np.isin(request.lease.blocks, blocks).any():
                self._requeue(request, now)

    @property
    def num_loading(self) -> int:
        """Running requests that wait for a load."""
        return sum(request.is_loading for request in self.running)

    def check_integrity(self) -> None:
        """Check the cache, and that slots and leases are held by running requests alone."""
        self._cache.check_integrity()
        slots = sorted(self._free_seq_slots + [request.seq_slot for request in self.running])
        if slots != list(range(self._shapes.num_seq_slots)):
            raise IntegrityError("a slot is lost or held twice")
        if any(r.lease is not None or r.seq_slot != NO_SEQ_SLOT for r in self.waiting):
            raise IntegrityError("a waiting request holds a slot or blocks")
        held = {int(b) for r in self.running if r.lease is not None for b in r.lease.blocks}
        if self._cache.num_leased != len(held):
            raise IntegrityError("blocks are leased by no running request")

    def _plan_chunks(self, plan: StepPlan, requests: Sequence[Request], now: float) -> None:
        for request in list(requests):
            # One before it may have preempted it.
            if request.lease is not None and request.wants_step and not request.is_loading:
                self._plan_chunk(plan, request, now)

    def _next_length(self, plan: StepPlan, request: Request) -> tuple[int, bool]:
        """Tokens of a request's next chunk, as rows allow, and whether it takes a decode row."""
        length = request.num_tokens - request.num_computed
        if self._shapes.deterministic:
            length = request.num_prompt - request.num_computed
            if length <= 0:
                return 1, True
        elif length == 1:
            return 1, True
        return self._shapes.longest_chunk(plan.prefill_lengths, length), False

    def _plan_chunk(self, plan: StepPlan, request: Request, now: float) -> bool:
        """Add the next chunk of a running request to the plan, as long as rows allow."""
        if request.num_computed + 1 < request.num_known and self._may_hit(request):
            self._adopt(request, now)
        length, is_decode = self._next_length(plan, request)
        if length == 0 or not self._grow(request, request.num_computed + length, now):
            return False
        start = request.num_computed
        request.num_computed += length
        request.num_prompt_computed += max(0, min(request.num_computed, request.num_prompt) - start)
        samples = request.num_computed == request.num_tokens
        request.num_in_flight += samples
        lease = request.lease
        assert lease is not None
        before = lease.num_indexed
        if self._has_news(request):
            self._cache.publish(lease, self._writable(request), now)
            if lease.num_indexed > before:
                plan.published.append((lease, before))
        num_pages = -(-request.num_computed // self._cache.page_size)
        pages = self._cache.table.page[lease.blocks[:num_pages]]
        plan.chunks.append(Chunk(request, start, length, pages, samples, is_decode))
        if not is_decode:
            plan.prefill_lengths.append(length)
        if request.first_scheduled_s is None:
            request.first_scheduled_s = now
        return True

    def _adopt(self, request: Request, now: float) -> None:
        """Skip what another request has computed of the same prompt since the last chunk."""
        assert request.lease is not None
        num_written = request.num_computed // self._cache.page_size
        self._cache.deduplicate(request.lease, request.known[:-1], now, num_written=num_written)
        num_shared = request.lease.num_indexed * self._cache.page_size
        request.num_computed = max(request.num_computed, num_shared)

    def _may_hit(self, request: Request) -> bool:
        """Whether a running request may take blocks that others have computed since."""
        return not (request.scores_prompt or self._shapes.deterministic)

    def _num_writable(self, request: Request) -> int:
        """Tokens that are known, whose KV is written or planned to be, and that may be shared."""
        num_tokens = min(request.num_known, request.num_computed)
        return min(num_tokens, request.num_prompt) if self._shapes.deterministic else num_tokens

    def _writable(self, request: Request) -> np.ndarray:
        return request.tokens[: self._num_writable(request)]

    def _has_news(self, request: Request) -> bool:
        """Whether a block of a running request is full that is not indexed."""
        assert request.lease is not None
        return self._num_writable(request) // self._cache.page_size > request.lease.num_indexed

    def _grow(self, request: Request, num_tokens: int, now: float) -> bool:
        """Lease blocks up to ``num_tokens``, preempting from the end of the order for room."""
        lease = request.lease
        assert lease is not None
        short = -(-num_tokens // self._cache.page_size) - len(lease)
        while short > 0 and not self._cache.grow(lease, short, now):
            # Those planned already come before this one, so the victim is in no plan yet.
            victim = self.running[-1]
            self._preempt(victim, now)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request, now: float) -> None:
        request.num_preemptions += 1
        self.num_preemptions += 1
        self._requeue(request, now)

    def _requeue(self, request: Request, now: float) -> None:
        self.running.remove(request)
        self._release(request, now)
        self.preempted.append((request, request.num_computed))
        request.num_computed = 0
        insort(self.waiting, request, key=_BY_ORDER)

    def _release(self, request: Request, now: float) -> None:
        assert request.lease is not None
        self._cache.release(request.lease, now)
        request.lease = None
        request.is_loading = False
        self._free_seq_slots.append(request.seq_slot)
        request.seq_slot = NO_SEQ_SLOT

    def _admit(self, plan: StepPlan, now: float) -> None:
        in_progress = {key for r in self.running if (key := self._next_block(r)) is not None}
        for request in list(self.waiting):
            if not self._free_seq_slots or not self._shapes.longest_chunk(plan.prefill_lengths, 2):
                return
            if request.num_in_flight:
                continue  # preempted in mid-step: its last token is still to come
            if not self.can_admit(request):
                continue
            # At least one token is always computed: its logits are what the prompt asks for.
            matched = self._match(request)
            is_shared = self._block_key(request, matched) in in_progress
            if is_shared and not request.scores_prompt:
                continue  # another computes its next block: share it rather than compute it twice
            if not self._has_room(request, matched):
                return
            self.waiting.remove(request)
            insort(self.running, request, key=_BY_ORDER)
            plan.admitted.append(request)
            self._virtual_time = max(self._virtual_time, request.virtual_start)
            request.seq_slot = self._free_seq_slots.pop()
            lease = self._lease(request, matched, now)
            num_blocks = -(-request.num_known // self._cache.page_size)
            if not self._cache.grow(lease, num_blocks - len(matched), now):
                raise IntegrityError("blocks counted as available cannot be had")
            if not request.is_loading:
                self._plan_chunk(plan, request, now)
            if (key := self._next_block(request)) is not None:
                in_progress.add(key)

    def _lease(self, request: Request, matched: np.ndarray, now: float) -> Lease:
        """Begin a request with its cached prefix, blocks i32[n], loading what is on the host."""
        cache = self._cache
        valid = cache.table.device_state[matched] == DeviceState.VALID
        lease = request.lease = cache.lease(request.root, matched, now)
        request.num_computed = len(matched) * cache.page_size
        request.is_loading = not valid.all()
        if request.num_cached is None:
            request.num_cached = request.num_computed
            request.num_cached_host = int((~valid).sum()) * cache.page_size
            self.num_prompt_tokens += request.num_prompt
            self.num_cached_tokens += request.num_cached
            self.num_host_tokens += request.num_cached_host
        return lease

    def _match(self, request: Request) -> np.ndarray:
        """Blocks i32[n] of the cached prefix that a waiting request may use."""
        matched = self._indexed(request)
        residency = self._cache.residency
        num_on_device = residency.num_on_device(matched)
        matched = residency.usable(matched) if self.uses_host else matched[:num_on_device]
        is_here = self._cache.table.device_state[matched] == DeviceState.VALID
        num_here = len(matched) if is_here.all() else int(is_here.argmin())
        num_tokens = (len(matched) - num_here) * self._cache.page_size
        if num_tokens and not self.should_load(max(0, len(matched) - num_on_device), num_tokens):
            matched = matched[:num_here]
        if not self._shapes.deterministic:
            return matched
        per_tile = self._shapes.tile // self._cache.page_size
        return matched[: len(matched) // per_tile * per_tile]

    def _indexed(self, request: Request) -> np.ndarray:
        """Blocks i32[n] of a request's longest indexed prefix that leaves a token to compute."""
        if request.scores_prompt:
            return np.empty(0, np.int32)
        if not self._shapes.deterministic:
            return self._cache.match(request.root, request.known[:-1])
        return self._cache.match(request.root, request.known[: request.num_prompt - 1])

    def _has_room(self, request: Request, matched: np.ndarray) -> bool:
        """Whether the whole sequence fits beside a next block for each running request."""
        cache = self._cache
        on_device = matched[: cache.residency.num_on_device(matched)]
        needed = -(-request.num_tokens // cache.page_size) - len(on_device)
        now_idle = int((cache.table.leases[on_device] == 0).sum())
        return needed + now_idle + len(self.running) <= cache.num_available

    def _next_block(self, request: Request) -> tuple[RootKey, int, bytes] | None:
        """What names the block a running request computes next, if its tokens are all known."""
        if request.lease is None or request.num_computed >= request.num_known:
            return None
        return self._block_key(
            request, request.lease.blocks[: request.num_computed // self._cache.page_size]
        )

    def _block_key(self, request: Request, before: np.ndarray) -> tuple[RootKey, int, bytes] | None:
        page = self._cache.page_size
        tokens = request.known[len(before) * page : (len(before) + 1) * page]
        if len(tokens) < page:
            return None
        return request.root, int(before[-1]) if len(before) else NO_BLOCK, tokens.tobytes()
