"""Eviction orders: pure functions from the facts of blocks to keys. The lowest key goes first.

Every policy orders *leaves* only: a block goes after all that continue it. Leased blocks are never
asked about.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kvflow_jax.cache.blocks import BlockTable

# (table, blocks i32[n]) -> f64[n]
EvictionOrder = Callable[[BlockTable, np.ndarray], np.ndarray]


def lru(table: BlockTable, blocks: np.ndarray) -> np.ndarray:
    """Least recently used first. A block is used when a lease that holds it starts or ends."""
    return table.last_use[blocks]
