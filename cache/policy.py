"""Eviction orders: pure functions from the facts of blocks to keys. The lowest key goes first.

Every policy orders *leaves* only: a block goes after all that continue it, so the tail of a node
can go without the rest. Leased and loading blocks are never asked about. The same order says what
goes from the host when its budget is spent.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kvflow_jax.cache.blocks import BlockTable

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


POLICIES: dict[str, EvictionOrder] = {"lru": lru, "kvflow": kvflow}
