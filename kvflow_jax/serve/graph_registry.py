"""The registered Agent Step Graphs, as JSON."""

from __future__ import annotations

import asyncio

from kvflow_jax.bounds.tenant_lru import TenantLru, Usage
from kvflow_jax.control.registered_graphs import MAX_BYTES

GraphKey = tuple[str, str]  # tenant, graph_id


class GraphRegistry:
    """JSON by tenant and name; those of a tenant that were registered first go first.

    Runs on the event loop. The engine stores the graphs themselves; hold ``lock`` while changing
    both, so that they agree. The budget is that of the engine and counts the JSON, too, so that
    the engine never evicts a graph that is here.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.lock = asyncio.Lock()
        self._evicted: list[GraphKey] = []
        self._texts: TenantLru[GraphKey, bytes] = TenantLru(
            max_bytes, lambda key, text: self._evicted.append(key)
        )

    @property
    def usage(self) -> Usage:
        return self._texts.usage

    def put(self, key: GraphKey, text: bytes, graph_bytes: int) -> list[GraphKey]:
        """Store a graph; return the keys of the graphs evicted for it.

        Args:
            graph_bytes: memory of the graph that the engine stores.
        """
        self._texts.put(key[0], key, text, len(text) + graph_bytes)
        evicted, self._evicted = self._evicted, []
        return evicted

    def names(self, tenant: str) -> list[str]:
        """Return the names of a tenant's graphs, oldest registration first."""
        return [graph_id for _, graph_id in self._texts.keys(tenant)]

    def get(self, key: GraphKey) -> bytes | None:
        return self._texts.get(key[0], key)

    def remove(self, key: GraphKey) -> bool:
        """Remove a graph; return False if there is none of this name."""
        return self._texts.pop(key[0], key) is not None
