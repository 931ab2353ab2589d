"""Transfers ahead of time: offloads while the link is idle, and prefetches of prefixes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from kvflow_jax.cache.blocks import NO_PAGE
from kvflow_jax.cache.lazy_queue import LazyQueue
from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.cache.reuse_tracker import OTHER_BRANCH, UNKNOWN_STEPS
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
        self._prefetches = prefetches
        self._should_load = should_load
        self._call_s: float | None = None  # average duration of an agent's call
        self.reset(cache)

    def reset(self, cache: PrefixCache) -> None:
        """Start over with an empty cache."""
        self._cache = cache
        # (block, generation). Entries beyond the size of the pool are stale, the oldest first.
        self._to_offload: deque[tuple[int, int]] = deque(maxlen=cache.table.num_pages)
        self._candidates = LazyQueue(self._is_candidate)  # nodes by steps-to-execution

    def offload_later(self, block: int) -> None:
        """Offload the path that ends with ``block`` once the link is idle."""
        if self._cache.residency.host.max_blocks:
            self._to_offload.append((block, int(self._cache.table.generation[block])))

    def note_call(self, call_s: float) -> None:
        """Record the duration of an agent's call in seconds, without its time in the queue."""
        previous_s = call_s if self._call_s is None else self._call_s
        self._call_s = previous_s + _EWMA_WEIGHT * (call_s - previous_s)

    def plan_offloads(self, transfer_manager: TransferManager) -> None:
        """Plan offloads until the link is saturated.

        Call it before this step publishes blocks to the index: the blocks of the index have then
        been written by steps that are dispatched already.
        """
        residency, table = self._cache.residency, self._cache.table
        while (
            self._to_offload
            and residency.offload_budget > 0
            and not transfer_manager.is_saturated(Direction.OFFLOAD, residency.offloads)
        ):
            block, generation = self._to_offload[0]
            is_on_device = table.generation[block] == generation and table.page[block] != NO_PAGE
            if not is_on_device or not residency.offload(
                block, max_blocks=residency.host.max_extent_blocks
            ):
                self._to_offload.popleft()

    def plan_prefetch(self, transfer_manager: TransferManager, num_reserved: int) -> None:
        """Plan loads in order of steps-to-execution, evicting only what is needed later.

        Args:
            num_reserved: pages to leave free for running requests.
        """
        cache = self._cache
        residency, table = cache.residency, cache.table
        changed = [head for head in cache.take_changed_nodes() if self._is_candidate(head)]
        if not self._prefetches:
            return
        self._candidates.push(changed, table.steps[changed][:, None].tolist())
        for load in residency.pending_prefetches():
            # The run took another branch.
            if cache.steps_of(int(load.blocks[-1])) >= UNKNOWN_STEPS:
                residency.cancel(load)
        while (
            transfer_manager.is_usable(Direction.LOAD)
            and not transfer_manager.is_saturated(Direction.LOAD, residency.loads)
            and (top := self._candidates.peek()) is not None
        ):
            (steps,), head = top
            if steps != table.steps[head]:
                self._candidates.pop()  # stale: it was offered again with its new steps
                continue
            loadable = cache.loadable_blocks(head)
            blocks = loadable[table.extent[loadable] == table.extent[loadable[0]]]
            load_s = transfer_manager.estimate_s(Direction.LOAD, len(blocks))
            if not self._meets_deadline(steps, load_s):
                break
            if not self._is_worthwhile(steps, len(blocks)):
                break
            if not self._load(blocks, num_reserved, steps):
                break

    def _is_candidate(self, head: int) -> bool:
        """Return whether a node will be read soon and has blocks that can be loaded."""
        end = self._cache.last_block_of(head)
        if end is None or self._cache.table.page[end] != NO_PAGE:
            return False
        steps = float(self._cache.table.steps[head])
        return (
            steps < UNKNOWN_STEPS
            and steps % 1 < OTHER_BRANCH
            and len(self._cache.loadable_blocks(head)) > 0
        )

    def _meets_deadline(self, steps: float, load_s: float) -> bool:
        """Return whether a load completes before the block's deadline.

        Always True for the next step, which waits for a shorter time if the load starts now.
        """
        if steps < 2.0:
            return True
        return self._call_s is not None and load_s <= int(steps) * self._call_s

    def _is_worthwhile(self, steps: float, num_blocks: int) -> bool:
        """Return whether the cost model prefers a load to recomputing the blocks."""
        spare_s = int(steps) * (self._call_s or 0.0)
        num_tokens = num_blocks * self._cache.page_size
        return self._should_load is None or self._should_load(num_blocks, num_tokens, spare_s)

    def _load(self, blocks: np.ndarray, num_reserved: int, steps: float) -> bool:
        """Plan the load of ``blocks``, i32[n] of one extent; return whether all of them fit.

        Only blocks with more than ``steps`` steps-to-execution are evicted for them.
        """
        cache, residency = self._cache, self._cache.residency
        extent = residency.host.extents[int(cache.table.extent[blocks[0]])]
        num_pages = len(blocks) + num_reserved
        # Pinned, as blocks that are evicted may take the room of the extent on the host.
        residency.host.pin(extent)
        num_short = num_pages - cache.table.num_free_pages
        residency.evict_while(num_short, lambda victim: cache.steps_of(victim) > steps)
        # If not all blocks fit, the first ones are loaded: a prefix is of use from its start.
        num_free = cache.table.num_free_pages - num_reserved
        if num_free > 0:
            residency.load(blocks[:num_free], is_prefetch=True)
        residency.host.unpin(extent)
        return num_free >= len(blocks)
