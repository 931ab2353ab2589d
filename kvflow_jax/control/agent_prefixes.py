"""The fixed prefix of each agent: as its caller declares it, or learned from its last prompts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kvflow_jax.control.readers import AgentReader
from kvflow_jax.requests.block_hashes import common_prefix_len
from kvflow_jax.requests.request import Request

MAX_AGENTS = 200_000
AGENT_TTL_S = 3600.0  # an agent without a call for this long is forgotten


@dataclass(slots=True)
class _Agent:
    last_seen_s: float
    page_hashes: np.ndarray | None = None  # i64[n], of its last prompt; None if declared


class AgentPrefixes:
    """Learns fixed prefixes by comparing each agent's prompt with its previous one.

    Args:
        release: called with each agent that is forgotten.
    """

    def __init__(self, release: Callable[[AgentReader], object]) -> None:
        self._release = release
        self._agents: OrderedDict[AgentReader, _Agent] = (
            OrderedDict()
        )  # least recently called first

    def __iter__(self) -> Iterator[AgentReader]:
        return iter(self._agents)

    def note_call(self, agent: AgentReader, request: Request, page_size: int, now: float) -> int:
        """Record a call of an agent and return the length of its fixed prefix in tokens.

        A declared length is returned as it is. A learned one is a multiple of ``page_size``, and 0
        at the agent's first call.
        """
        record = self._agents.get(agent)
        if record is None:
            record = self._agents[agent] = _Agent(now)
            while len(self._agents) > MAX_AGENTS:
                self._release(self._agents.popitem(last=False)[0])
        record.last_seen_s = now
        self._agents.move_to_end(agent)
        assert request.hints is not None
        if request.hints.num_fixed is not None:
            record.page_hashes = None
            return request.hints.num_fixed
        previous, record.page_hashes = record.page_hashes, _page_hashes(request, page_size)
        return (
            0 if previous is None else common_prefix_len(previous, record.page_hashes) * page_size
        )

    def expire(self, now: float) -> None:
        """Forget the agents without a call in the last ``AGENT_TTL_S`` seconds."""
        while self._agents:
            agent, record = next(iter(self._agents.items()))
            if now - record.last_seen_s < AGENT_TTL_S:
                return
            del self._agents[agent]
            self._release(agent)


def _page_hashes(request: Request, page_size: int) -> np.ndarray:
    num_pages = request.num_prompt // page_size
    pages = request.tokens[: num_pages * page_size].reshape(num_pages, page_size)
    return np.fromiter((hash(page.tobytes()) for page in pages), np.int64, num_pages)
