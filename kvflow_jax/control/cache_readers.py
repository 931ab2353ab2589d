"""The readers of a cache: which prefix each of them reads again, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from kvflow_jax.cache.next_read import UNKNOWN, NextRead
from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.cache.tiers import BlockRef
from kvflow_jax.control.agent_prefixes import AgentPrefixes
from kvflow_jax.control.readers import AgentReader, PreemptedReader, PrefixReader, Reader
from kvflow_jax.control.shadow_lru import LruFallback
from kvflow_jax.requests.request import Request


class CacheReaders:
    """Sets the readers of a cache. Those of a tenant that falls back to LRU are UNKNOWN.

    Args:
        lru_fallback: None: no tenant falls back.
        prefixes: the fixed prefixes of agents.
        known_read_of: the next read of a prefix, in runs that have read it; and of an agent, in
            runs that have called it with no prefix yet. None: there are no such runs.
        offload_later: called with the end of each prefix that is set; None: nothing is offloaded
            before its eviction.
    """

    def __init__(
        self,
        cache: PrefixCache,
        lru_fallback: LruFallback | None,
        prefixes: AgentPrefixes,
        known_read_of: Callable[[AgentReader | PrefixReader], NextRead | None],
        offload_later: Callable[[BlockRef], object] | None,
    ) -> None:
        self._cache = cache
        self._lru_fallback = lru_fallback
        self._prefixes = prefixes
        self._known_read_of = known_read_of
        self._offload_later = offload_later

    def reset(self, cache: PrefixCache) -> None:
        """Start over with an empty cache."""
        self._cache = cache

    def set(self, reader: Reader, request: Request, tokens: np.ndarray, read: NextRead) -> None:
        """Let a reader read ``tokens`` (i32[n], the first of a request) again."""
        read = self._deciding(reader, read)
        end = self._cache.set_reader(reader, request.root, tokens, read)
        if end is not None and self._offload_later is not None:
            self._offload_later(end)

    def set_prefix(self, prefix: PrefixReader, request: Request, tokens: np.ndarray) -> None:
        """Let an agent read ``tokens`` (i32[n], a fixed prefix of it) again.

        Does nothing if the prefix was forgotten while the tokens were computed: its reader would
        never be removed.
        """
        agent = prefix.of_agent
        known = self._prefixes.of(agent)
        if prefix not in known:
            return
        (read,) = self._prefix_reads(agent, [prefix])
        self.set(prefix, request, tokens, read)
        self._update_prefixes(agent, known)  # another may have been the only one

    def remove(self, reader: Reader) -> None:
        """Remove a reader; no effect if it has no prefix."""
        self._cache.remove_reader(reader)

    def update(self, changes: Mapping[Reader, NextRead]) -> None:
        """Set the next read of readers for which it has changed."""
        for reader, read in changes.items():
            if isinstance(reader, PrefixReader):
                self._update_prefixes(reader.of_agent, [reader])
            elif isinstance(reader, AgentReader):
                self._update_prefixes(reader, self._prefixes.shared(reader))
            else:
                self._cache.set_next_read(reader, self._deciding(reader, read))

    def update_agent(self, agent: AgentReader) -> None:
        """Set the next reads of an agent's prefixes, after its tenant's fallback changed."""
        self._update_prefixes(agent, self._prefixes.of(agent))

    def _update_prefixes(self, agent: AgentReader, prefixes: Sequence[PrefixReader]) -> None:
        for prefix, read in zip(prefixes, self._prefix_reads(agent, prefixes), strict=True):
            self._cache.set_next_read(prefix, read)

    def _prefix_reads(
        self, agent: AgentReader, prefixes: Sequence[PrefixReader]
    ) -> Sequence[NextRead]:
        if self._falls_back_to_lru(agent.tenant):
            return [UNKNOWN] * len(prefixes)
        shared, next_call = self._prefixes.shared(agent), self._known_read_of(agent)
        found = []
        for prefix in prefixes:
            reads = [self._known_read_of(prefix), next_call if prefix in shared else None]
            # Runs that are known to read it never or late count before those that may begin.
            found.append(min((read for read in reads if read is not None), default=UNKNOWN))
        return found

    def _deciding(self, reader: Reader, read: NextRead) -> NextRead:
        """Return the next read of a reader that the cache goes by."""
        if isinstance(reader, PreemptedReader):
            return read  # it resumes, whatever decides for its tenant
        return UNKNOWN if self._falls_back_to_lru(reader.tenant) else read

    def _falls_back_to_lru(self, tenant: str) -> bool:
        return self._lru_fallback is not None and self._lru_fallback.falls_back_to_lru(tenant)
