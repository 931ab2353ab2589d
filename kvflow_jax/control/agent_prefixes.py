"""Agents that are called, and how far the prompts of each agree: its fixed prefix."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kvflow_jax.control.run_tracker import AgentKey
from kvflow_jax.requests.block_hashes import num_common
from kvflow_jax.requests.request import Request

MAX_AGENTS = 200_000
AGENT_TTL_S = 3600.0  # a fixed prefix that no call has read for this long is nobody's


@dataclass(slots=True)
class _Agent:
    """What is known of an agent beside its steps."""

    last_seen_s: float
    pages: np.ndarray | None = None  # i64[n], hashes of the pages of its last prompt


class AgentPrefixes:
    """Remembers each agent's last prompt, where callers do not say what is fixed.

    Args:
        release: is told of each that is forgotten.
    """

    def __init__(self, release: Callable[[AgentKey], object]) -> None:
        self._release = release
        self._agents: OrderedDict[AgentKey, _Agent] = OrderedDict()  # called longest ago first

    def __iter__(self) -> Iterator[AgentKey]:
        return iter(self._agents)

    def call(self, agent: AgentKey, request: Request, page_size: int, now: float) -> int:
        """An agent is called; tokens of its fixed prefix, as far as it is known."""
        record = self._agents.get(agent)
        if record is None:
            record = self._agents[agent] = _Agent(now)
            while len(self._agents) > MAX_AGENTS:
                self._release(self._agents.popitem(last=False)[0])
        record.last_seen_s = now
        self._agents.move_to_end(agent)
        assert request.hints is not None
        if request.hints.num_fixed is not None:
            record.pages = None
            return request.hints.num_fixed
        before, record.pages = record.pages, _page_hashes(request, page_size)
        return 0 if before is None else num_common(before, record.pages) * page_size

    def expire(self, now: float) -> None:
        """Forget those that have not been called for long."""
        while self._agents:
            agent, record = next(iter(self._agents.items()))
            if now - record.last_seen_s < AGENT_TTL_S:
                return
            del self._agents[agent]
            self._release(agent)


def _page_hashes(request: Request, page_size: int) -> np.ndarray:
    num_pages = request.num_prompt // page_size
    pages = request.tokens[: num_pages * page_size].reshape(num_pages, page_size)
    return np.fromiter((hash(one.tobytes()) for one in pages), np.int64, num_pages)
