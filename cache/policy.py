"""Eviction policies: pure functions from block state to keys. The lowest key is evicted first.

Every policy orders *leaves* only: a block is evicted after all blocks that continue it, so the tail
of a node can be evicted without the rest. Leased and loading blocks are never passed to a policy.
The same order applies to the host tier when its budget is exhausted.

A key may depend only on the columns ``steps``, ``last_use``, ``depth``, ``head`` and ``parent`` of
the table: blocks are queued again when their steps or last use change. A key that depends on
leases, children or host state goes stale in ``LazyQueue``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kvflow_jax.cache.blocks import SUFFIX, BlockTable
from kvflow_jax.cache.reuse_tracker import LIKELIHOOD_SPREAD, NEVER_STEPS, OTHER_BRANCH

# (table, blocks i32[n]) -> f64[n, any]; keys compare lexicographically
EvictionOrder = Callable[[BlockTable, np.ndarray], np.ndarray]


def lru(table: BlockTable, blocks: np.ndarray) -> np.ndarray:
    """Order by last use (LRU). A block is used when a lease on it starts or ends."""
    return table.last_use[blocks][:, None]


def kvflow(table: BlockTable, blocks: np.ndarray) -> np.ndarray:
    """Order by steps-to-execution, as KVFlow (arXiv 2507.07400, section 3.2).

    Suffixes without a reader are evicted first, then blocks with the largest steps-to-execution; a
    block that several agents share counts as the soonest of them. Ties are broken by LRU. Agents
    of unknown order are evicted before those of known order, and after those that will never run.
    """
    keys = np.empty((len(blocks), 2))
    np.negative(table.steps[table.head[blocks]], out=keys[:, 0])
    keys[:, 1] = table.last_use[blocks]
    return keys


# Relative increase of a block's compute time for each block before it: attention's share of prefill
# grows with the length of the prompt. Value of a model of 8 billion parameters with 16 tokens a
# block; other models are similar.
DEPTH_COST = 5e-4


def kvflow_cost(table: BlockTable, blocks: np.ndarray) -> np.ndarray:
    """Order by expected loss: recompute cost times probability of a read, per step until it.

        chance * (1 + DEPTH_COST * depth) / max(steps, 1/2)

    Suffixes are evicted first, then blocks of agents that will never run, as by ``kvflow``.
    """
    return expected_loss(table, blocks, by_chance=True, by_cost=True)


def expected_loss(
    table: BlockTable, blocks: np.ndarray, *, by_chance: bool, by_cost: bool
) -> np.ndarray:
    """Return the keys of ``kvflow_cost``, f64[n, 2].

    Args:
        by_chance: False: count every read as certain.
        by_cost: False: count every block as equally expensive to recompute.
    """
    steps = table.steps[table.head[blocks]]
    is_known = steps < NEVER_STEPS
    whole_steps = np.floor(np.where(is_known, steps, 0.0))
    loss = 1.0 / np.maximum(whole_steps, 0.5)
    if by_chance:
        # The fraction of the steps encodes the likelihood; see ``reuse_tracker``.
        fraction = np.where(is_known, steps, 0.0) - whole_steps
        fraction -= OTHER_BRANCH * (fraction >= OTHER_BRANCH)
        loss *= 1.0 - fraction / LIKELIHOOD_SPREAD
    if by_cost:
        loss *= 1.0 + DEPTH_COST * table.depth[blocks]
    keys = np.empty((len(blocks), 2))
    keys[:, 0] = np.where(is_known, loss, np.where(steps == SUFFIX, -2.0, -1.0))
    keys[:, 1] = table.last_use[blocks]
    return keys


POLICIES: dict[str, EvictionOrder] = {
    "lru": lru,
    "kvflow": kvflow,
    "kvflow-cost": kvflow_cost,
}
