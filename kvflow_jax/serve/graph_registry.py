"""The step graphs that clients have registered, as they wrote them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

GraphKey = tuple[str, str]  # tenant, graph_id

MAX_GRAPHS = 10_000  # as many as the engine holds
MAX_BYTES = 32 << 20  # of their JSON; a graph takes some ten times that


class RegisteredGraphs:
    """JSON by tenant and name, bounded: those registered longest ago go. Lives on the loop.

    The engine holds the graphs themselves; whoever changes both holds ``lock``, so that they agree.
    """

    def __init__(self, max_graphs: int = MAX_GRAPHS, max_bytes: int = MAX_BYTES) -> None:
        self.lock = asyncio.Lock()
        self._max_graphs, self._max_bytes = max_graphs, max_bytes
        self._texts: OrderedDict[GraphKey, bytes] = OrderedDict()
        self._num_bytes = 0

    def put(self, key: GraphKey, text: bytes) -> list[GraphKey]:
        """Keep a graph; those that had to go for it."""
        self.remove(key)
        self._texts[key] = text
        self._num_bytes += len(text)
        gone = []
        while len(self._texts) > 1 and (
            len(self._texts) > self._max_graphs or self._num_bytes > self._max_bytes
        ):
            oldest = next(iter(self._texts))
            self.remove(oldest)
            gone.append(oldest)
        return gone

    def names(self, tenant: str) -> list[str]:
        """Of a tenant's graphs, those registered longest ago first."""
        return [graph_id for owner, graph_id in self._texts if owner == tenant]

    def get(self, key: GraphKey) -> bytes | None:
        return self._texts.get(key)

    def remove(self, key: GraphKey) -> bool:
        """Forget a graph; False where there is none of this name."""
        text = self._texts.pop(key, None)
        if text is None:
            return False
        self._num_bytes -= len(text)
        return True
