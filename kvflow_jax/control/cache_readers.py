"""The readers of a cache: which prefix each of them reads again, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from kvflow_jax.cache.next_read import UNKNOWN, NextRead
from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.cache.tiers import BlockRef
from kvflow_jax.control.readers import AgentReader, Reader
from kvflow_jax.control.shadow_lru import LruFallback
from kvflow_jax.requests.request import Request


class CacheReaders:
    """Sets the readers of a cache. Agents of a tenant that falls back to LRU are UNKNOWN.

    Args:
        lru_fallback: None: no tenant falls back.
        next_read_of: the next read of an agent's prefix.
        offload_later: called with the end of each prefix that is set; None: nothing is offloaded
            before its eviction.
    """

    def __init__(
        self,
        cache: PrefixCache,
        lru_fallback: LruFallback | None,
        next_read_of: Callable[[AgentReader], NextRead],
        offload_later: Callable[[BlockRef], object] | None,
    ) -> None:
        self._cache = cache
        self._lru_fallback = lru_fallback
        self._next_read_of = next_read_of
        self._offload_later = offload_later

    def reset(self, cache: PrefixCache) -> None:
        """Start over with an empty cache."""
        self._cache = cache

    def set(self, reader: Reader, request: Request, tokens: np.ndarray, read: NextRead) -> None:
        """Let a reader read ``tokens`` (i32[n], the first of a request) again."""
        end = self._cache.set_reader(reader, request.root, tokens, read)
        if end is not None and self._offload_later is not None:
            self._offload_later(end)

    def set_agent(self, agent: AgentReader, request: Request, tokens: np.ndarray) -> None:
        """Let an agent read ``tokens`` (i32[n], its fixed prefix) again."""
        self.set(agent, request, tokens, self._agent_reads(agent))

    def remove(self, reader: Reader) -> None:
        """Remove a reader; no effect if it has no prefix."""
        self._cache.remove_reader(reader)

    def update(self, changes: Mapping[Reader, NextRead]) -> None:
        """Set the next read of readers for which it has changed."""
        for reader, read in changes.items():
            if isinstance(reader, AgentReader):
                self.update_agent(reader)
            else:
                self._cache.set_next_read(reader, read)

    def update_agent(self, agent: AgentReader) -> None:
        """Set the next read of an agent, after its runs or its tenant's fallback changed."""
        self._cache.set_next_read(agent, self._agent_reads(agent))

    def _agent_reads(self, agent: AgentReader) -> NextRead:
        fallback = self._lru_fallback
        if fallback is not None and fallback.falls_back_to_lru(agent.tenant):
            return UNKNOWN
        return self._next_read_of(agent)
