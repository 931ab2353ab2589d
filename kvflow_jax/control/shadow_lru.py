"""The LRU fallback: a safeguard against step graphs that lower the hit rate.

A ghost cache keeps the block hashes, and nothing else, that an LRU cache of the device's size would
hold. If the calls of a tenant keep finding less than the ghost cache does, the steps of the
tenant's graphs are ignored for a while, and LRU decides. If all requests together keep finding
less, whether they follow a graph or not, LRU decides for every tenant.
"""

from __future__ import annotations

from collections import OrderedDict

from kvflow_jax.requests.block_hashes import block_hashes
from kvflow_jax.requests.request import Request

# Of the newest call, in the averages of a tenant and of all tenants together.
_EWMA_WEIGHT, _GLOBAL_EWMA_WEIGHT = 0.1, 0.05
_MAX_HIT_GAP = 0.1  # share of a prompt's blocks
# Calls before the first decision about a tenant, and about all tenants together.
_MIN_CALLS, _GLOBAL_MIN_CALLS = 10, 20
_FALLBACK_CALLS = 200  # calls for which LRU decides, before the graphs are tried again
MAX_TENANTS = 10_000


class ShadowLRU:
    """A ghost cache: the block hashes that an LRU cache of ``num_blocks`` blocks would hold."""

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._hashes: OrderedDict[int, None] = OrderedDict()  # least recently used first

    def access(self, hashes: list[int]) -> int:
        """Use the blocks of a sequence, in order; return how many leading ones were cached."""
        cached = self._hashes
        num_hits = next((i for i, key in enumerate(hashes) if key not in cached), len(hashes))
        # In reverse order, so that a block is evicted before the blocks it continues.
        for key in reversed(hashes):
            cached[key] = None
            cached.move_to_end(key)
        while len(cached) > self._num_blocks:
            cached.popitem(last=False)
        return num_hits


class _Tenant:
    __slots__ = ("hit_gap", "num_calls", "num_fallback_calls")

    def __init__(self) -> None:
        self.hit_gap = 0.0  # average of (ghost cache's hits - hits) / blocks of the prompt
        self.num_calls = 0
        self.num_fallback_calls = 0  # remaining ones


class LruFallback:
    """Decides which tenants fall back to LRU, by comparing their hits with those of a ShadowLRU.

    Args:
        num_blocks: blocks of the device pool.
        page_size: tokens per block.
    """

    def __init__(self, num_blocks: int, page_size: int) -> None:
        self._num_blocks = num_blocks
        self._page_size = page_size
        self._tenants: OrderedDict[str, _Tenant] = OrderedDict()
        self._hit_gap = self._num_read = 0.0  # blocks per call, averages over all tenants
        self._num_calls = 0  # since the last decision about all tenants
        self._num_fallback_calls = 0  # remaining ones of all tenants together
        self.reset()

    def reset(self) -> None:
        """Start over with an empty ghost cache, as the cache was emptied."""
        self._shadow = ShadowLRU(self._num_blocks)

    def falls_back_to_lru(self, tenant: str) -> bool:
        """Return whether the steps of a tenant's graphs are to be ignored now."""
        record = self._tenants.get(tenant)
        return self._num_fallback_calls > 0 or (
            record is not None and record.num_fallback_calls > 0
        )

    def on_prefill_done(self, request: Request, *, is_agent_call: bool) -> bool:
        """Compare the hits of a request whose prompt was computed with those of the ghost cache.

        Returns:
            Whether the decision about its tenant, or about all tenants, has changed.
        """
        hashes = block_hashes(request, request.num_prompt, self._page_size).tolist()
        num_shadow_hits = self._shadow.access(hashes)
        if not hashes or request.scores_prompt:  # the latter is computed whole, without hits
            return False
        # The last token is always computed, so the block that it ends is never a hit.
        gap = min(num_shadow_hits, (request.num_prompt - 1) // self._page_size)
        gap -= (request.num_cached or 0) // self._page_size
        is_changed = self._update_global(gap, len(hashes))
        if is_agent_call and self._update_tenant(request.tenant, gap / len(hashes)):
            return True
        return is_changed

    def on_request_finished(self, request: Request) -> None:
        """Add the output of a request to the ghost cache, as a cache would hold it, too."""
        num_computed = min(request.num_computed, request.num_known)
        self._shadow.access(block_hashes(request, num_computed, self._page_size).tolist())

    def _update_global(self, hit_gap: int, num_read: int) -> bool:
        self._hit_gap += _GLOBAL_EWMA_WEIGHT * (hit_gap - self._hit_gap)
        self._num_read += _GLOBAL_EWMA_WEIGHT * (num_read - self._num_read)
        self._num_calls += 1
        if self._num_fallback_calls:
            self._num_fallback_calls -= 1
            return not self._num_fallback_calls
        if self._num_calls < _GLOBAL_MIN_CALLS or self._hit_gap <= _MAX_HIT_GAP * self._num_read:
            return False
        self._hit_gap, self._num_calls, self._num_fallback_calls = 0.0, 0, _FALLBACK_CALLS
        return True

    def _update_tenant(self, name: str, hit_gap: float) -> bool:
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = _Tenant()
            if len(self._tenants) > MAX_TENANTS:
                self._tenants.popitem(last=False)
        tenant.num_calls += 1
        if tenant.num_fallback_calls:
            tenant.num_fallback_calls -= 1
            return not tenant.num_fallback_calls
        tenant.hit_gap += _EWMA_WEIGHT * (hit_gap - tenant.hit_gap)
        if tenant.num_calls < _MIN_CALLS or tenant.hit_gap <= _MAX_HIT_GAP:
            return False
        tenant.hit_gap, tenant.num_calls, tenant.num_fallback_calls = 0.0, 0, _FALLBACK_CALLS
        return True
