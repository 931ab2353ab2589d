"""Eviction policies: pure functions from facts of blocks to keys. The lowest key is evicted first.

Every policy orders *leaves* only: a block is evicted after all blocks that continue it, so the tail
of a node can be evicted without the rest. Leased and loading blocks are never passed to a policy.
The same order applies to the host tier when its budget is exhausted.

A key may depend on nothing but ``BlockFacts``: blocks are queued again when one of these facts
changes. A key that depends on anything else goes stale in ``LazyQueue``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kvflow_jax.cache.blocks import BlockTable
from kvflow_jax.cache.next_read import ReadKind


class BlockFacts:
    """Facts of n blocks that a policy may use. Every array has one row for each block.

    The arrays are copies, gathered from the block table when they are read, but for ``blocks``,
    the ids: a policy must not write to it.
    """

    __slots__ = ("_table", "blocks")

    def __init__(self, table: BlockTable, blocks: np.ndarray) -> None:
        self._table = table
        self.blocks = blocks  # i32[n], ids

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def next_read(self) -> np.ndarray:
        """f64[n, 4]: ``kind, distance, skips_prefetch, miss_chance``, see ``NextRead``.

        Rows compare in this order: the block that is read soonest has the least.
        """
        rows: np.ndarray = self._table.next_read[self._table.head[self.blocks]]
        return rows

    @property
    def kind(self) -> np.ndarray:
        """f64[n]: what is known about the next read, a ReadKind."""
        return self.next_read[:, 0]

    @property
    def distance(self) -> np.ndarray:
        """f64[n]: steps-to-execution until the next read; 0 if it is in no known order."""
        return self.next_read[:, 1]

    @property
    def chance(self) -> np.ndarray:
        """f64[n]: probability that the read at this distance happens."""
        return 1.0 - self.next_read[:, 3]

    @property
    def last_use(self) -> np.ndarray:
        """f64[n]: when a lease on the block last started or ended, engine clock in seconds."""
        last_use: np.ndarray = self._table.last_use[self.blocks]
        return last_use

    @property
    def depth(self) -> np.ndarray:
        """i32[n]: number of blocks before it in its sequence."""
        depth: np.ndarray = self._table.depth[self.blocks]
        return depth

    @property
    def generation(self) -> np.ndarray:
        """u32[n]: how often the id was freed before its present use."""
        generation: np.ndarray = self._table.generation[self.blocks]
        return generation


# Returns f64[n, any]; keys compare lexicographically.
EvictionOrder = Callable[[BlockFacts], np.ndarray]


def lru(facts: BlockFacts) -> np.ndarray:
    """Order by last use (LRU). A block is used when a lease on it starts or ends."""
    return facts.last_use[:, None]


def kvflow(facts: BlockFacts) -> np.ndarray:
    """Order by steps-to-execution, as KVFlow (arXiv 2507.07400, section 3.2).

    Suffixes without a reader are evicted first, then blocks with the largest steps-to-execution; a
    block that several agents share counts as the soonest of them. Ties are broken by LRU. Blocks
    of agents that will never run are evicted before those of throttled runs, then those of unknown
    order, then those of known order.
    """
    next_read = facts.next_read
    keys = np.empty((len(facts), 1 + next_read.shape[1]))
    np.negative(next_read, out=keys[:, :-1])
    keys[:, -1] = facts.last_use
    return keys


# Relative increase of a block's compute time for each block before it: attention's share of prefill
# grows with the length of the prompt. Value of a model of 8 billion parameters with 16 tokens a
# block; other models are similar.
DEPTH_COST = 5e-4
# Steps at which ``kvflow_cost`` counts a reader of unknown order, and steps that it adds for a
# throttled one: more than a known distance, so that the order of kinds is that of ``kvflow``.
UNKNOWN_DISTANCE, THROTTLED_DISTANCE = 2.0**20, 2.0**21


def kvflow_cost(facts: BlockFacts) -> np.ndarray:
    """Order by expected loss: recompute cost times probability of a read, per step until it.

        chance * (1 + DEPTH_COST * depth) / max(distance, 1/2)

    Suffixes are evicted first, then blocks of agents that will never run, as by ``kvflow``.
    """
    return expected_loss(facts, by_chance=True, by_cost=True)


def expected_loss(facts: BlockFacts, *, by_chance: bool, by_cost: bool) -> np.ndarray:
    """Return the keys of ``kvflow_cost``, f64[n, 2].

    Args:
        by_chance: False: count every read as certain.
        by_cost: False: count every block as equally expensive to recompute.
    """
    next_read = facts.next_read
    kind, distance = next_read[:, 0], next_read[:, 1]
    distance = np.where(kind == ReadKind.UNKNOWN, UNKNOWN_DISTANCE, distance)
    distance += THROTTLED_DISTANCE * (kind == ReadKind.THROTTLED)
    loss = 1.0 / np.maximum(distance, 0.5)
    if by_chance:
        loss *= 1.0 - next_read[:, 3]
    if by_cost:
        loss *= 1.0 + DEPTH_COST * facts.depth
    keys = np.empty((len(facts), 2))
    keys[:, 0] = np.where(
        kind < ReadKind.NEVER, loss, np.where(kind == ReadKind.SUFFIX, -2.0, -1.0)
    )
    keys[:, 1] = facts.last_use
    return keys


POLICIES: dict[str, EvictionOrder] = {
    "lru": lru,
    "kvflow": kvflow,
    "kvflow-cost": kvflow_cost,
}
