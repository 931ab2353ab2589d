"""Eviction policies that leave a term of ``kvflow_cost`` out, for the ablation."""

from __future__ import annotations

import numpy as np

from kvflow_jax.cache.policy import BlockFacts, expected_loss


def kvflow_chance(facts: BlockFacts) -> np.ndarray:
    """Order as ``kvflow_cost`` with equal costs for all blocks; ablates the cost term."""
    return expected_loss(facts, by_chance=True, by_cost=False)


def kvflow_depth(facts: BlockFacts) -> np.ndarray:
    """Order as ``kvflow_cost`` as if every branch were taken; ablates the probability."""
    return expected_loss(facts, by_chance=False, by_cost=True)
