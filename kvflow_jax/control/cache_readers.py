"""The readers of a cache: which prefix each of them reads again, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from kvflow_jax.cache.next_read import UNKNOWN, NextRead
from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.cache.tiers import BlockRef
from kvflow_jax.control.agent_prefixes import AgentPrefixes
from kvflow_jax.control.readers import AgentReader, PrefixReader, Reader
from kvflow_jax.control.shadow_lru import LruFallback
from kvflow_jax.requests.request import Request


class CacheReaders:
    """Sets the readers of a cache. Agents of a tenant that falls back to LRU are UNKNOWN.

    Args:
        lru_fallback: None: no tenant falls back.
        prefixes: the fixed prefixes of agents.
        next_read_of: the next read of a prefix, in runs that have read it; and of an agent, in runs
            that have called it with no prefix yet.
        offload_later: called with the end of each prefix that is set; None: nothing is offloaded
            before its eviction.
    """

    def __init__(
        self,
        cache: PrefixCache,
        lru_fallback: LruFallback | None,
        prefixes: AgentPrefixes,
        next_read_of: Callable[[AgentReader | PrefixReader], NextRead],
        offload_later: Callable[[BlockRef], object] | None,
    ) -> None:
        self._cache = cache
        self._lru_fallback = lru_fallback
        self._prefixes = prefixes
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

    def set_prefix(self, prefix: PrefixReader, request: Request, tokens: np.ndarray) -> None:
        """Let an agent read ``tokens`` (i32[n], a fixed prefix of it) again."""
        self.set(prefix, request, tokens, self._prefix_reads(prefix))
        for other in self._prefixes.of(prefix.of_agent):
            if other != prefix:  # it may have been the only one
                self._update_prefix(other)

    def remove(self, reader: Reader) -> None:
        """Remove a reader; no effect if it has no prefix."""
        self._cache.remove_reader(reader)

    def update(self, changes: Mapping[Reader, NextRead]) -> None:
        """Set the next read of readers for which it has changed."""
        for reader, read in changes.items():
            if isinstance(reader, PrefixReader):
                self._update_prefix(reader)
            elif isinstance(reader, AgentReader):
                for prefix in self._prefixes.shared(reader):
                    self._update_prefix(prefix)
            else:
                self._cache.set_next_read(reader, read)

    def update_agent(self, agent: AgentReader) -> None:
        """Set the next reads of an agent's prefixes, after its tenant's fallback changed."""
        for prefix in self._prefixes.of(agent):
            self._update_prefix(prefix)

    def _update_prefix(self, prefix: PrefixReader) -> None:
        self._cache.set_next_read(prefix, self._prefix_reads(prefix))

    def _prefix_reads(self, prefix: PrefixReader) -> NextRead:
        fallback = self._lru_fallback
        if fallback is not None and fallback.falls_back_to_lru(prefix.tenant):
            return UNKNOWN
        read, agent = self._next_read_of(prefix), prefix.of_agent
        is_shared = prefix in self._prefixes.shared(agent)
        return min(read, self._next_read_of(agent)) if is_shared else read
