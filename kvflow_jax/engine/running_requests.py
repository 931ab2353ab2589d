"""The running requests: those with a seq slot and a lease."""

from __future__ import annotations

import numpy as np

from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.errors import IntegrityError
from kvflow_jax.requests.request import NO_SEQ_SLOT, Request


class RunningRequests:
    """Owns the seq slots, and the leases of the requests that have one.

    Attributes:
        requests: in the order of their claims to blocks, from the start of a step on.
        num_prompt_tokens: of all requests that have started, each once.
        num_cached_tokens: the part of these that was cached.
        num_host_tokens: the part of ``num_cached_tokens`` that was on the host only.
    """

    def __init__(self, cache: PrefixCache, num_seq_slots: int) -> None:
        self.requests: list[Request] = []
        self.num_prompt_tokens = 0
        self.num_cached_tokens = 0
        self.num_host_tokens = 0
        self._cache = cache
        self._num_seq_slots = num_seq_slots
        self._free_seq_slots = list(range(num_seq_slots - 1, -1, -1))

    @property
    def num_free_seq_slots(self) -> int:
        return len(self._free_seq_slots)

    @property
    def num_loading(self) -> int:
        """Number of requests that wait for a load."""
        return sum(request.is_loading for request in self.requests)

    def publish_loads(self) -> None:
        """Let the requests go on whose loads are done."""
        for request in self.requests:
            if request.is_loading:
                assert request.lease is not None
                request.is_loading = self._cache.num_loading(request.lease) > 0

    def has_room(self, request: Request, matched: np.ndarray, num_reserved: int = 0) -> bool:
        """True if the whole sequence fits beside one more block for each running request.

        Args:
            matched: the cached prefix that it would lease, blocks i32[n].
            num_reserved: blocks to leave to others beside these.
        """
        return self._cache.has_room(
            matched,
            self._num_blocks(request.num_tokens),
            num_reserved=len(self.requests) + num_reserved,
            tenant=request.root.tenant,
        )

    def start(self, request: Request, matched: np.ndarray, now: float) -> None:
        """Give a request a seq slot, and a lease with blocks for all tokens that are known.

        Args:
            matched: its cached prefix, blocks i32[n]; host-only ones are loaded.

        Raises:
            IntegrityError: there was no room; ask ``has_room`` before.
        """
        self.requests.append(request)
        request.seq_slot = self._free_seq_slots.pop()
        cache = self._cache
        request.lease = cache.lease(request.root, matched, now)
        num_loading = cache.num_loading(request.lease)
        request.num_computed = len(matched) * cache.page_size
        request.is_loading = num_loading > 0
        if request.num_cached is None:
            request.num_cached = request.num_computed
            request.num_cached_host = num_loading * cache.page_size
            self.num_prompt_tokens += request.num_prompt
            self.num_cached_tokens += request.num_cached
            self.num_host_tokens += request.num_cached_host
        if not self.grow(request, request.num_known, now):
            raise IntegrityError("blocks counted as available could not be leased")

    def grow(self, request: Request, num_tokens: int, now: float) -> bool:
        """Lease blocks for ``num_tokens`` tokens of a request; False if there are too few."""
        lease = request.lease
        assert lease is not None
        num_missing = self._num_blocks(num_tokens) - len(lease)
        return num_missing <= 0 or self._cache.grow(lease, num_missing, now)

    def end(self, request: Request, now: float) -> None:
        """Release a request's seq slot and lease."""
        self.requests.remove(request)
        assert request.lease is not None
        self._cache.release(request.lease, now)
        request.lease = None
        request.is_loading = False
        self._free_seq_slots.append(request.seq_slot)
        request.seq_slot = NO_SEQ_SLOT

    def check_integrity(self) -> None:
        """Check that exactly these requests have seq slots and leases."""
        seq_slots = sorted(self._free_seq_slots + [request.seq_slot for request in self.requests])
        if seq_slots != list(range(self._num_seq_slots)):
            raise IntegrityError("a seq slot is missing or used twice")
        leased = {int(b) for r in self.requests if r.lease is not None for b in r.lease.blocks}
        if self._cache.num_leased != len(leased):
            raise IntegrityError("blocks are leased by no running request")

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._cache.page_size)
