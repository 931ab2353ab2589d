"""Divides each tier among tenants, and bounds what one may evict of another's blocks.

A tenant's *room* is an equal share of a tier: the device pool, the host tier. Idle blocks within
its room stay while the tenant is active, whatever others compute; idle blocks beyond it are
anybody's. A tree of the index belongs to one tenant, so that every block of a room can be evicted
after those that continue it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, NO_PAGE, BlockTable

# A tenant that has used the cache since is active. As long as a conversation is kept.
ACTIVE_S = 600.0


@dataclass(frozen=True, slots=True)
class Rooms:
    """Blocks of each tenant in one tier, by the index of the tenant.

    Attributes:
        num_idle: blocks that can be evicted, i64[num_tenants].
        excess: blocks beyond the tenant's room, i64[num_tenants]; negative if it has fewer.
    """

    num_idle: np.ndarray
    excess: np.ndarray

    def claimable(self, tenant: int | None) -> np.ndarray:
        """Return how many idle blocks of each tenant may be evicted for one, i64[num_tenants].

        Args:
            tenant: the one; it may evict all of its own idle blocks. None: one without blocks.
        """
        claimable: np.ndarray = np.clip(self.excess, 0, self.num_idle)
        if tenant is not None:
            claimable[tenant] = self.num_idle[tenant]
        return claimable

    def order(self, tenant: int) -> list[int]:
        """Return the tenants in the order in which their blocks are evicted for one.

        Those with the most blocks beyond their rooms come first.
        """
        excess = self.excess.copy()
        # Blocks within its own room come after those of others beyond theirs.
        excess[tenant] = max(-1, excess[tenant])
        return [int(index) for index in np.argsort(-excess, kind="stable")]


class TenantRooms:
    """The tenants of a block table, by index (the column ``tenant`` of the table)."""

    def __init__(self, table: BlockTable) -> None:
        self._table = table
        self._indices: dict[str, int] = {}
        self._used_s: list[float] = []  # by index, when it last used the cache
        self._now = 0.0

    @property
    def are_many(self) -> bool:
        """True if more than one tenant has used the cache."""
        return len(self._indices) > 1

    def use(self, tenant: str, now: float) -> int:
        """Record that a tenant uses the cache; return its index."""
        self._now = now
        index = self._indices.setdefault(tenant, len(self._indices))
        if index == len(self._used_s):
            self._used_s.append(now)
        self._used_s[index] = now
        return index

    def index_of(self, tenant: str) -> int | None:
        """Return the index of a tenant; None if it has never used the cache."""
        return self._indices.get(tenant)

    def on_device(self) -> Rooms:
        """Return what each tenant has in the pool."""
        table, num_tenants = self._table, len(self._indices)
        has_page = table.page != NO_PAGE
        is_idle = has_page & (table.leases == 0) & (table.head != NO_BLOCK)
        num_pages = np.bincount(table.tenant[has_page], minlength=num_tenants)
        num_idle = np.bincount(table.tenant[is_idle], minlength=num_tenants)
        return Rooms(num_idle, self._excess(num_pages, table.num_pages))

    def on_host(self, num_blocks_of: Mapping[int, int], max_blocks: int) -> Rooms:
        """Return what each tenant has in the host tier; all of it counts as idle.

        Args:
            num_blocks_of: blocks by the index of the tenant.
            max_blocks: budget of the tier.
        """
        counts = [num_blocks_of.get(index, 0) for index in range(len(self._indices))]
        num_blocks = np.array(counts, np.int64)
        return Rooms(num_blocks, self._excess(num_blocks, max_blocks))

    def _excess(self, num_blocks: np.ndarray, max_blocks: int) -> np.ndarray:
        """Return the blocks of each tenant beyond its room in a tier of ``max_blocks``.

        A tenant that is not active has no room.
        """
        is_active = np.array(self._used_s) > self._now - ACTIVE_S
        room = max_blocks // max(1, int(is_active.sum()))
        # All that a tenant left behind goes before what others have beyond their rooms.
        excess: np.ndarray = num_blocks + np.where(is_active, -room, max_blocks)
        return excess
