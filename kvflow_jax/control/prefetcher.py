"""What to move ahead of time: copies to the host while the link is idle, prefixes back before they
are asked for."""

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

_FRESH = 0.2  # weight of the newest call in the estimate of how long a call takes


# (blocks to be loaded, tokens to be computed instead, seconds until needed) -> whether to load
ShouldLoad = Callable[[int, int, float], bool]


class Prefetcher:
    """Plans moves for one cache, once a step.

    Args:
        prefetches: bring back what agents will read before they ask.
        should_load: says what is not worth it; None: everything is.
    """

    def __init__(
        self, cache: PrefixCache, *, prefetches: bool, should_load: ShouldLoad | None = None
    ) -> None:
        self._prefetches = prefetches
        self._should_load = should_load
        self._call_s: float | None = None  # how long a call of an agent takes, of late
        self.reset(cache)

    def reset(self, cache: PrefixCache) -> None:
        """Plan for another cache, which is empty."""
        self._cache = cache
        # Block and generation; of more than the pool holds the oldest are not here any more.
        self._to_offload: deque[tuple[int, int]] = deque(maxlen=cache.table.num_pages)
        self._wanted = LazyQueue(self._is_wanted)  # nodes by steps

    def offload_later(self, block: int) -> None:
        """Copy a path down to ``block`` when the link is idle."""
        if self._cache.residency.host.max_blocks:
            self._to_offload.append((block, int(self._cache.table.generation[block])))

    def note_call(self, call_s: float) -> None:
        """A call of an agent took so long, queue not counted."""
        before_s = call_s if self._call_s is None else self._call_s
        self._call_s = before_s + _FRESH * (call_s - before_s)

    def plan_offloads(self, transfer_manager: TransferManager) -> None:
        """Plan copies to the host. Call before anything of this step is put into the index.

        What is there then has been written by steps dispatched already.
        """
        residency, table = self._cache.residency, self._cache.table
        while (
            self._to_offload
            and residency.offload_budget > 0
            and not transfer_manager.has_work(Direction.OFFLOAD, residency.offloads)
        ):
            block, generation = self._to_offload[0]
            is_here = table.generation[block] == generation and table.page[block] != NO_PAGE
            if not is_here or not residency.offload(block, most=residency.host.longest):
                self._to_offload.popleft()

    def plan_prefetch(self, transfer_manager: TransferManager, num_reserved: int) -> None:
        """Plan loads of what will be read, soonest first, while nothing needed sooner must go.

        Args:
            num_reserved: slots to be left free for those that run.
        """
        cache = self._cache
        residency, table = cache.residency, cache.table
        moved = [head for head in cache.take_moved() if self._is_wanted(head)]
        if not self._prefetches:
            return
        self._wanted.offer(moved, table.steps[moved][:, None].tolist())
        for load in residency.prefetches():
            if cache.steps_of(int(load.blocks[-1])) >= UNKNOWN_STEPS:
                residency.cancel(load)  # the run went elsewhere
        while (
            transfer_manager.is_usable(Direction.LOAD)
            and not transfer_manager.has_work(Direction.LOAD, residency.loads)
            and (top := self._wanted.peek()) is not None
        ):
            (steps,), head = top
            if steps != table.steps[head]:
                self._wanted.pop()  # it was offered anew
                continue
            missing = cache.missing(head)
            some = missing[table.extent[missing] == table.extent[missing[0]]]
            if not self._lands_in_time(steps, transfer_manager.seconds(Direction.LOAD, len(some))):
                break
            if not self._is_worth_it(steps, len(some)):
                break
            if not self._load(some, num_reserved, steps):
                break

    def _is_wanted(self, head: int) -> bool:
        """Whether a node is known to be read soon, and can be brought back."""
        end = self._cache.end_of(head)
        if end is None or self._cache.table.page[end] != NO_PAGE:
            return False
        steps = float(self._cache.table.steps[head])
        return (
            steps < UNKNOWN_STEPS
            and steps % 1 < OTHER_BRANCH
            and len(self._cache.missing(head)) > 0
        )

    def _lands_in_time(self, steps: float, load_s: float) -> bool:
        """Whether a load pays now: for who runs next always, it waits the less for it."""
        if steps < 2.0:
            return True
        return self._call_s is not None and load_s <= int(steps) * self._call_s

    def _is_worth_it(self, steps: float, num_blocks: int) -> bool:
        """Whether who reads them would not rather compute them than wait."""
        spare_s = int(steps) * (self._call_s or 0.0)
        num_tokens = num_blocks * self._cache.page_size
        return self._should_load is None or self._should_load(num_blocks, num_tokens, spare_s)

    def _load(self, blocks: np.ndarray, num_reserved: int, steps: float) -> bool:
        """Bring blocks i32[n] of one extent back, if only what is needed later must go for it."""
        cache, residency = self._cache, self._cache.residency
        extent = residency.host.extents[int(cache.table.extent[blocks[0]])]
        num_slots = len(blocks) + num_reserved
        residency.host.pin(extent)  # what is evicted may want the host's room, too
        short = num_slots - cache.table.num_free_pages
        residency.evict_while(short, lambda victim: cache.steps_of(victim) > steps)
        # What room there is serves the first of them: a prefix is of use from its start.
        room = cache.table.num_free_pages - num_reserved
        if room > 0:
            residency.load(blocks[:room], is_prefetch=True)
        residency.host.unpin(extent)
        return room >= len(blocks)
