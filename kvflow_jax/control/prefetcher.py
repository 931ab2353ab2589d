"""Transfers ahead of time: offloads while the link is idle, and prefetches of prefixes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from kvflow_jax.cache.lazy_queue import LazyQueue
from kvflow_jax.cache.next_read import NextRead
from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.cache.tiers import BlockRef
from kvflow_jax.cache.transfer import Direction
from kvflow_jax.control.transfer_manager import TransferManager

_EWMA_WEIGHT = 0.2  # of the newest call

# (blocks to load, tokens to compute instead, seconds until they are needed) -> whether to load
ShouldLoad = Callable[[int, int, float], bool]


class Prefetcher:
    """Plans the offloads and prefetches of one cache, once per step.

    Args:
        prefetches: whether to load prefixes before a request asks for them.
        should_load: the cost model's decision; None loads always.
    """

    def __init__(
        self, cache: PrefixCache, *, prefetches: bool, should_load: ShouldLoad | None = None
    ) -> None:
        self.prefetches = prefetches
        self._should_load = should_load
        self._call_s: float | None = None  # average duration of an agent's call
        self.reset(cache)

    def reset(self, cache: PrefixCache) -> None:
        """Start over with an empty cache."""
        self._tiers, self._page_size = cache.tiers, cache.page_size
        # Entries beyond the size of the pool are stale, the oldest first.
        self._to_offload: deque[BlockRef] = deque(maxlen=cache.num_pages)
        self._candidates = LazyQueue(self._is_candidate)  # nodes by their next read

    def offload_later(self, end: BlockRef) -> None:
        """Offload the path that ends with a block once the link is idle."""
        if self._tiers.max_host_blocks:
            self._to_offload.append(end)

    def note_call_time(self, call_s: float) -> None:
        """Record the duration of an agent's call in seconds, without its time in the queue."""
        previous_s = call_s if self._call_s is None else self._call_s
        self._call_s = previous_s + _EWMA_WEIGHT * (call_s - previous_s)

    def plan_offloads(self, transfer_manager: TransferManager) -> None:
        """Plan offloads until the link is saturated.

        Call it before this step publishes blocks to the index: the blocks of the index have then
        been written by steps that are dispatched already.
        """
        tiers = self._tiers
        while (
            self._to_offload
            and tiers.has_offload_budget
            and not transfer_manager.is_saturated(Direction.OFFLOAD, tiers.planned_offloads)
        ):
            if not tiers.offload(self._to_offload[0]):
                self._to_offload.popleft()

    def plan_prefetch(
        self, transfer_manager: TransferManager, num_reserved: int, now: float
    ) -> None:
        """Plan loads in order of the next read, evicting only what is read later.

        Args:
            num_reserved: pages to leave free for running requests.
        """
        tiers = self._tiers
        changed = [head for head in tiers.drain_changed_nodes() if self._is_candidate(head)]
        if not self.prefetches:
            return
        self._candidates.push(changed, map(tiers.next_read_of_node, changed))
        # The run took another branch.
        tiers.cancel_prefetches(lambda read: not read.is_scheduled)
        while (
            transfer_manager.is_usable(Direction.LOAD)
            and not transfer_manager.is_saturated(Direction.LOAD, tiers.planned_loads)
            and (top := self._candidates.peek()) is not None
        ):
            key, head = top
            read = tiers.next_read_of_node(head)
            if tuple(key) != read:
                self._candidates.pop()  # stale: it was offered again with its new key
                continue
            blocks = tiers.next_extent(head)
            load_s = transfer_manager.estimate_s(Direction.LOAD, len(blocks))
            if not self._meets_deadline(read, load_s):
                break
            if not self._is_worthwhile(read, len(blocks)):
                break
            if not tiers.prefetch(blocks, read, now, num_reserved=num_reserved):
                break

    def _is_candidate(self, head: int) -> bool:
        """Return whether a node will be read soon and has blocks that can be loaded."""
        if not self._tiers.next_read_of_node(head).is_prefetched:
            return False
        return len(self._tiers.loadable_blocks(head)) > 0

    def _meets_deadline(self, read: NextRead, load_s: float) -> bool:
        """Return whether a load completes before the block's deadline.

        Always True for the next step, which waits for a shorter time if the load starts now.
        """
        if read.distance < 2.0:
            return True
        return self._call_s is not None and load_s <= read.distance * self._call_s

    def _is_worthwhile(self, read: NextRead, num_blocks: int) -> bool:
        """Return whether the cost model prefers a load to recomputing the blocks."""
        spare_s = read.distance * (self._call_s or 0.0)
        num_tokens = num_blocks * self._page_size
        return self._should_load is None or self._should_load(num_blocks, num_tokens, spare_s)
