"""Eviction orders: pure functions from the facts of blocks to keys. The lowest key goes first.

Every policy orders *leaves* only: a block goes after all that continue it, so the tail of a node
can go without the rest. Leased and loading blocks are never asked about. The same order says what
goes from the host when its budget is spent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kvflow_jax.cache.blocks import SUFFIX, BlockTable
from kvflow_jax.cache.reuse_tracker import LIKELIHOOD_SPREAD, NEVER_STEPS, OTHER_BRANCH

# (table, blocks i32[n]) -> f64[n, any]; keys compare lexicographically
EvictionOrder = Callable[[BlockTable, np.ndarray], np.ndarray]


def lru(table: BlockTable, blocks: np.ndarray) -> np.ndarray:
    """Least recently used first. A block is used when a lease that holds it starts or ends."""
    return table.last_use[blocks][:, None]


def kvflow(table: BlockTable, blocks: np.ndarray) -> np.ndarray:
    """KVFlow's order (arXiv 2507.07400, section 3.2).

    Suffixes that nobody will read again go first, then what is needed after the most steps; a
    block that several agents share counts as the soonest of them; equals by recency. Agents of
    which no order is known are needed after those of which one is, and before those that will
    never run.
    """
    keys = np.empty((len(blocks), 2))
    np.negative(table.steps[table.head[blocks]], out=keys[:, 0])
    keys[:, 1] = table.last_use[blocks]
    return keys


# How much longer a block takes to compute for each block before it: attention's share of a prompt
# grows with its length. Of a model of 8 billion parameters, 16 tokens a block; of others alike.
DEPTH_COST = 5e-4


def kvflow_cost(table: BlockTable, blocks: np.ndarray) -> np.ndarray:
    """Least expected loss first: what a block would cost to compute, times the chance that it is
    read, over the steps until then.

        chance * (1 + DEPTH_COST * depth) / max(steps, 1/2)

    Suffixes go first, then what will never run, as with ``kvflow``.
    """
    return _expected_loss(table, blocks, by_chance=True, by_cost=True)


def kvflow_chance(table: BlockTable, blocks: np.ndarray) -> np.ndarray:
    """``kvflow_cost`` if every block cost the same: to see what its costs bring."""
    return _expected_loss(table, blocks, by_chance=True, by_cost=False)


def kvflow_depth(table: BlockTable, blocks: np.ndarray) -> np.ndarray:
    """``kvflow_cost`` if every branch were taken: to see what its chances bring."""
    return _expected_loss(table, blocks, by_chance=False, by_cost=True)


def _expected_loss(
    table: BlockTable, blocks: np.ndarray, *, by_chance: bool, by_cost: bool
) -> np.ndarray:
    steps = table.steps[table.head[blocks]]
    is_known = steps < NEVER_STEPS
    whole = np.floor(np.where(is_known, steps, 0.0))
    loss = 1.0 / np.maximum(whole, 0.5)
    if by_chance:
        beyond = np.where(is_known, steps, 0.0) - whole
        beyond -= OTHER_BRANCH * (beyond >= OTHER_BRANCH)
        loss *= 1.0 - beyond / LIKELIHOOD_SPREAD
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
    "kvflow-chance": kvflow_chance,
    "kvflow-depth": kvflow_depth,
}
