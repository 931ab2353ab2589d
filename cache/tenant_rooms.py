"""How much of the device each tenant has, and what of it others may have evicted.

A tenant's *room* is an equal share of the pool. Idle blocks within its room stay while the tenant
is active, whatever others compute; idle blocks beyond it are anybody's. A tree of the index belongs
to one tenant, so that every block of a room can be evicted after those that continue it.
"""

from __future__ import annotations

import numpy as np

from kvflow_jax.cache.blocks import NO_BLOCK, NO_PAGE, BlockTable

# A tenant that has used the cache since is active. As long as a conversation is kept.
ACTIVE_S = 600.0


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

    def claimable(self, tenant: int | None) -> np.ndarray:
        """Return how many idle pages of each tenant another may have evicted, i64[num_tenants].

        Args:
            tenant: which asks; all of its own idle pages are its to evict.
        """
        num_idle, excess = self._count()
        claimable: np.ndarray = np.clip(excess, 0, num_idle)
        if tenant is not None:
            claimable[tenant] = num_idle[tenant]
        return claimable

    def order(self, tenant: int) -> list[int]:
        """Return whose blocks are evicted first for a tenant: the farthest beyond their rooms."""
        _, excess = self._count()
        # Of its own blocks none within its room, while others have some beyond theirs.
        excess[tenant] = max(-1, excess[tenant])
        return [int(index) for index in np.argsort(-excess, kind="stable")]

    def _count(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the idle pages of each tenant, and its pages beyond its room.

        A tenant that is not active has no room.
        """
        table, num_tenants = self._table, len(self._indices)
        has_page = table.page != NO_PAGE
        is_idle = has_page & (table.leases == 0) & (table.head != NO_BLOCK)
        num_pages = np.bincount(table.tenant[has_page], minlength=num_tenants)
        num_idle = np.bincount(table.tenant[is_idle], minlength=num_tenants)
        is_active = np.array(self._used_s) > self._now - ACTIVE_S
        room = table.num_pages // max(1, int(is_active.sum()))
        # All that a tenant left behind goes before what others have beyond their rooms.
        excess = num_pages + np.where(is_active, -room, table.num_pages)
        return num_idle, excess
