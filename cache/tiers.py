"""Door to the tiers of a prefix cache: what may be loaded and offloaded, and what was.

    Prefetcher ──prefetch, offload──▶ ┌───────┐
                                      │ Tiers │ ──plans──▶ TransferManager
    TransferManager ──completions───▶ └───────┘

The cache plans loads and offloads. The user of this door drains the plans in each step, carries
them out and reports their completion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from kvflow_jax.cache.block_ages import BlockAges
from kvflow_jax.cache.blocks import NO_BLOCK, NO_PAGE, BlockTable, DeviceState
from kvflow_jax.cache.index import NO_BLOCKS
from kvflow_jax.cache.next_read import NextRead
from kvflow_jax.cache.node_index import NodeIndex
from kvflow_jax.cache.residency import Residency
from kvflow_jax.cache.reuse_tracker import ReuseTracker
from kvflow_jax.cache.transfer_plans import Load, Offload, PageWrites, TransferPlans
from kvflow_jax.errors import IntegrityError


class BlockRef(NamedTuple):
    """Reference to a block that may be freed: valid while its id has this generation."""

    block: int
    generation: int


@dataclass(frozen=True, slots=True)
class TierCounters:
    """Counts of blocks, which never decrease; for the prefetched see ``LoadCounters``."""

    num_evicted: int
    num_offloaded: int
    num_loaded: int
    num_prefetched: int
    num_useful: int
    num_late: int
    num_wasted: int


class Tiers:
    """The device pool and the host tier of one cache."""

    def __init__(
        self, table: BlockTable, residency: Residency, nodes: NodeIndex, readers: ReuseTracker
    ) -> None:
        self._table = table
        self._residency = residency
        self._nodes = nodes
        self._readers = readers
        self._changed_nodes: set[int] = set()  # nodes whose next read has changed, until drained

    @property
    def num_host_blocks(self) -> int:
        """Blocks with a copy in the host tier."""
        return self._residency.host.num_blocks

    @property
    def max_host_blocks(self) -> int:
        """Budget of the host tier in blocks; 0 without one."""
        return self._residency.host.max_blocks

    @property
    def max_extent_blocks(self) -> int:
        """Length of the longest extent, in blocks."""
        return self._residency.host.max_extent_blocks

    @property
    def counters(self) -> TierCounters:
        """What has moved since the cache was made."""
        residency, loads = self._residency, self._residency.loads.counters
        return TierCounters(
            num_evicted=residency.num_evicted,
            num_offloaded=residency.num_offloaded,
            num_loaded=loads.num_loaded,
            num_prefetched=loads.num_prefetched,
            num_useful=loads.num_useful,
            num_late=loads.num_late,
            num_wasted=loads.num_wasted,
        )

    @property
    def ages(self) -> BlockAges:
        """How long blocks stayed on the device, and were idle, since the cache was made."""
        return self._residency.ages.ages

    def num_copied(self, path: np.ndarray) -> int:
        """Return how many leading blocks of a path, i32[n], have a host copy that can be loaded."""
        return self._residency.num_loadable(path)

    # Plans.

    @property
    def planned_loads(self) -> Sequence[Load]:
        """Loads that have not been drained."""
        return self._residency.loads.planned

    @property
    def planned_offloads(self) -> Sequence[Offload]:
        """Offloads that have not been drained."""
        return self._residency.planned_offloads

    def drain_plans(self) -> TransferPlans:
        """Return the transfers planned since the last call, without loads cancelled since."""
        return TransferPlans(
            self._residency.drain_offloads(), self._residency.loads.drain_planned()
        )

    def check_drained(self) -> None:
        """Raise IntegrityError if planned transfers were not drained: they would never happen."""
        if self._residency.planned_offloads or self._residency.loads.planned:
            raise IntegrityError("planned transfers were not drained in this step")

    def set_offload_budget(self, num_blocks: int) -> None:
        """Set how many blocks may be planned to be offloaded before the next call."""
        self._residency.offload_budget = num_blocks

    @property
    def has_offload_budget(self) -> bool:
        """Whether a block may be planned to be offloaded now."""
        return self._residency.offload_budget > 0

    def offload(self, ref: BlockRef) -> int:
        """Plan the offload of the path that ends with a block, up to one extent.

        Returns:
            The number of blocks planned; 0 if nothing is left to do for this path, or the block
            has left the device.
        """
        block, generation = ref
        table = self._table
        if table.generation[block] != generation or table.page[block] == NO_PAGE:
            return 0
        return self._residency.offload(block, max_blocks=self.max_extent_blocks)

    # Prefetch.

    def note_changed(self, nodes: set[int]) -> None:
        """Record nodes whose next read has changed. Called by the cache."""
        self._changed_nodes |= nodes

    def drain_changed_nodes(self) -> set[int]:
        """Return the nodes whose next read changed or of which a block became host-only.

        Only changes since the last call are returned.
        """
        changed = self._changed_nodes | self._residency.drain_host_only_nodes()
        self._changed_nodes = set()
        return {head for head in changed if head in self._nodes}

    def next_read_of_node(self, head: int) -> NextRead:
        """Return the next read of a node."""
        return self._readers.next_read_of(head)

    def loadable_blocks(self, head: int) -> np.ndarray:
        """Return the host-only blocks of the path to the end of a node that can be loaded.

        Returns:
            i32[n], in path order; empty if the node has left the index. A block whose copy is still
            being written ends them.
        """
        runs: list[np.ndarray] = []
        table = self._table
        while head in self._nodes:
            blocks = self._nodes.blocks_of(head)
            runs.append(blocks[table.page[blocks] == NO_PAGE])
            parent = int(table.parent[head])
            if parent == NO_BLOCK or len(runs[-1]) < len(blocks):
                break
            head = int(table.head[parent])
        path = np.concatenate(runs[::-1]) if runs else NO_BLOCKS
        return path[: self._residency.num_loadable(path)]

    def next_extent(self, head: int) -> np.ndarray:
        """Return those of ``loadable_blocks`` that the first extent has, i32[n]."""
        blocks = self.loadable_blocks(head)
        extent = self._table.extent[blocks]
        return blocks[extent == extent[0]] if len(blocks) else blocks

    def prefetch(
        self, blocks: np.ndarray, next_read: NextRead, now: float, *, num_reserved: int
    ) -> bool:
        """Plan the load of blocks with this next read; return whether all of them fit.

        Only blocks that are read later are evicted for them, none within the rooms of others.

        Args:
            blocks: i32[n], a result of ``next_extent``.
            num_reserved: pages to leave free.
        """
        table, residency = self._table, self._residency
        extent = residency.host.extents[int(table.extent[blocks[0]])]
        num_pages = len(blocks) + num_reserved
        # Pinned, as blocks that are evicted may take the room of the extent on the host.
        residency.host.pin(extent)
        residency.evict_while(
            num_pages - table.num_free_pages,
            lambda victim: self._readers.next_read_of(int(table.head[victim])) > next_read,
            now,
            int(table.tenant[blocks[0]]),
        )
        # If not all blocks fit, the first ones are loaded: a prefix is of use from its start.
        num_free = table.num_free_pages - num_reserved
        if num_free > 0:
            residency.load(blocks[:num_free], now, is_prefetch=True)
        residency.host.unpin(extent)
        return num_free >= len(blocks)

    def cancel_prefetches(self, is_stale: Callable[[NextRead], bool]) -> None:
        """Cancel the prefetches whose last block has a next read that ``is_stale`` accepts."""
        for load in self._residency.loads.running():
            if load.is_prefetch:
                head = int(self._table.head[load.blocks[-1]])
                if is_stale(self._readers.next_read_of(head)):
                    self._residency.cancel(load)

    # Completion.

    def complete_load(self, load: Load) -> PageWrites:
        """Complete a load whose copies are on the device, in a buffer beside the pool.

        Its blocks are valid from the next step on, which must follow the writes returned.
        """
        return self._residency.complete_load(load)

    def complete_offload(self, offload: Offload, data: Any) -> None:
        """Complete an offload with its copies; ignored if the extent was dropped meanwhile."""
        self._residency.complete_offload(offload.extent, data)

    def fail_offload(self, offload: Offload) -> None:
        """Drop an extent whose copies could not be written, and all that continue it."""
        self._residency.drop_lost_extent(offload.extent)

    def loading_blocks(self) -> np.ndarray:
        """Return the blocks that are loading, i32[n]."""
        return np.flatnonzero(self._table.device_state == DeviceState.LOADING).astype(np.int32)

    def fail_loads(self, failed: Sequence[Load], others: Sequence[Load]) -> None:
        """Drop host copies that could not be read. No lease may hold a block that is loading.

        Args:
            failed: loads whose copies are lost.
            others: all other loads that are not complete: loads are of paths, and a block that
                continues a failed one is of no use either.
        """
        pending = [*others, *failed]
        # A block can be cancelled only after those that continue it: repeat until none is left.
        while sum(self._residency.cancel(load) for load in reversed(pending)):
            pass
        for load in failed:
            self._residency.drop_lost_extent(load.extent)
