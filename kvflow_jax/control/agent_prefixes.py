"""The fixed prefix of each agent: as its caller declares it, or learned from its last prompts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kvflow_jax.bounds.tenant_lru import TenantLru, Usage
from kvflow_jax.control.readers import AgentReader
from kvflow_jax.requests.block_hashes import common_prefix_len
from kvflow_jax.requests.request import Request

MAX_BYTES = 16 << 20  # of one tenant's agents
AGENT_TTL_S = 3600.0  # an agent without a call for this long is forgotten
MAX_EXPIRED = 1000  # at once: about 10 ms
# Of an agent beside the hashes of its prompt: its record, its reader in the cache, and the head of
# its working set.
_AGENT_BYTES = 900


@dataclass(slots=True)
class _Agent:
    last_seen_s: float
    page_hashes: np.ndarray | None = None  # i64[n], of its last prompt; None if declared


class AgentPrefixes:
    """Learns fixed prefixes by comparing each agent's prompt with its previous one.

    Args:
        release: called with each agent that is forgotten.
    """

    def __init__(
        self, release: Callable[[AgentReader], object], max_bytes: int = MAX_BYTES
    ) -> None:
        self._release = release
        self._agents: TenantLru[AgentReader, _Agent] = TenantLru(
            max_bytes, lambda agent, record: release(agent)
        )

    def __iter__(self) -> Iterator[AgentReader]:
        return iter(self._agents)

    @property
    def usage(self) -> Usage:
        return self._agents.usage

    def note_call(self, agent: AgentReader, request: Request, page_size: int, now: float) -> int:
        """Record a call of an agent and return the length of its fixed prefix in tokens.

        A declared length is returned as it is. A learned one is a multiple of ``page_size``, and 0
        at the agent's first call.
        """
        record = self._agents.use(agent.tenant, agent) or _Agent(now)
        record.last_seen_s = now
        assert request.hints is not None
        previous, record.page_hashes = record.page_hashes, None
        if request.hints.num_fixed is None:
            record.page_hashes = _page_hashes(request, page_size)
        # A working set is at most as long as the prompt.
        hash_bytes = 2 * 8 * (request.num_prompt // page_size)
        num_bytes = _AGENT_BYTES + hash_bytes + sys.getsizeof(agent.agent)
        self._agents.put(agent.tenant, agent, record, num_bytes)
        if request.hints.num_fixed is not None:
            return request.hints.num_fixed
        if previous is None or record.page_hashes is None:
            return 0
        return common_prefix_len(previous, record.page_hashes) * page_size

    def expire(self, now: float) -> None:
        """Forget the agents without a call in the last ``AGENT_TTL_S`` seconds."""
        expired = self._agents.pop_oldest(
            lambda record: now - record.last_seen_s >= AGENT_TTL_S, MAX_EXPIRED
        )
        for agent, _ in expired:
            self._release(agent)


def _page_hashes(request: Request, page_size: int) -> np.ndarray:
    num_pages = request.num_prompt // page_size
    pages = request.tokens[: num_pages * page_size].reshape(num_pages, page_size)
    return np.fromiter((hash(page.tobytes()) for page in pages), np.int64, num_pages)
