"""The registered Agent Step Graphs, as JSON."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

GraphKey = tuple[str, str]  # tenant, graph_id

MAX_GRAPHS = 10_000  # the engine's own bound
MAX_BYTES = 32 << 20  # of JSON; a graph in memory takes about ten times its JSON


class GraphRegistry:
    """A bounded map from tenant and name to JSON, evicted in order of registration (FIFO).

    Runs on the event loop. The engine stores the graphs themselves; hold ``lock`` while changing
    both, so that they agree.
    """

    def __init__(self, max_graphs: int = MAX_GRAPHS, max_bytes: int = MAX_BYTES) -> None:
        self.lock = asyncio.Lock()
        self._max_graphs, self._max_bytes = max_graphs, max_bytes
        self._texts: OrderedDict[GraphKey, bytes] = OrderedDict()
        self._num_bytes = 0

    def put(self, key: GraphKey, text: bytes) -> list[GraphKey]:
        """Store a graph; return the keys of the graphs evicted for it."""
        self.remove(key)
        self._texts[key] = text
        self._num_bytes += len(text)
        evicted = []
        while len(self._texts) > 1 and (
            len(self._texts) > self._max_graphs or self._num_bytes > self._max_bytes
        ):
            oldest = next(iter(self._texts))
            self.remove(oldest)
            evicted.append(oldest)
        return evicted

    def names(self, tenant: str) -> list[str]:
        """Return the names of a tenant's graphs, oldest registration first."""
        return [graph_id for key_tenant, graph_id in self._texts if key_tenant == tenant]

    def get(self, key: GraphKey) -> bytes | None:
        return self._texts.get(key)

    def remove(self, key: GraphKey) -> bool:
        """Remove a graph; return False if there is none of this name."""
        text = self._texts.pop(key, None)
        if text is None:
            return False
        self._num_bytes -= len(text)
        return True
