"""The fixed prefixes of each agent: as its callers declare them, or learned from its prompts.

An agent may have several. Its role's text may come in two versions, or end with a ticket that
differs from run to run: a run then reads its own prefix, and a new run the part that runs share.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from kvflow_jax.bounds.tenant_lru import TenantLru, Usage
from kvflow_jax.control.readers import AgentReader, PrefixReader, RunKey
from kvflow_jax.requests.block_hashes import block_hashes, common_prefix_len
from kvflow_jax.requests.request import Request

MAX_BYTES = 16 << 20  # of one tenant's agents
MAX_PREFIXES = 16  # of an agent
# Of an agent, those that a run may read which has not called it. They are updated together, in each
# step of such a run.
MAX_SHARED = 4
MAX_PROMPTS = 16  # of an agent, with which each new one is compared
AGENT_TTL_S = 3600.0  # an agent without a call for this long is forgotten
MAX_EXPIRED = 1000  # at once: about 10 ms
# Of an agent: its record and the head of its working set; of each prefix: its record, and its
# reader in the cache; of each prompt, beside its hashes.
_AGENT_BYTES, _PREFIX_BYTES, _PROMPT_BYTES = 900, 700, 270


class FixedPrefix(NamedTuple):
    """The fixed prefix of a prompt.

    Attributes:
        num_tokens: its length; if it was learned, a multiple of the page size.
        reader: its name in the cache; None if it is shorter than a block.
    """

    num_tokens: int
    reader: PrefixReader | None


@dataclass(slots=True)
class _Prefix:
    """A fixed prefix of an agent: the run that has used it, and whether others have."""

    run: RunKey | int
    is_shared: bool


class _Prompt(NamedTuple):
    """A prompt without a declared prefix: its run, or the request's id, and its block hashes."""

    run: RunKey | int
    hashes: np.ndarray  # i64[n]


@dataclass(slots=True)
class _Agent:
    """An agent's prefixes and prompts, those used least recently first.

    Attributes:
        reader: its name, one text for all its prefixes: each call brings another.
    """

    reader: AgentReader
    last_seen_s: float
    prefixes: OrderedDict[PrefixReader, _Prefix] = field(default_factory=OrderedDict)
    prompts: list[_Prompt] = field(default_factory=list)

    def learn(self, prompt: _Prompt) -> tuple[int, bool]:
        """Compare a prompt with the last ones, and keep it.

        It replaces one of its run with which it has most in common, as that run's prompts grow.

        Returns:
            Blocks of the longest prefix that a prompt has, and whether one of another run has it.
        """
        lengths = [common_prefix_len(other.hashes, prompt.hashes) for other in self.prompts]
        is_own = [other.run == prompt.run for other in self.prompts]
        num_own, previous = max(
            ((length, i) for i, length in enumerate(lengths) if is_own[i]), default=(0, None)
        )
        num_shared = max((n for n, own in zip(lengths, is_own, strict=True) if not own), default=0)
        if previous is not None and 2 * num_own >= len(self.prompts[previous].hashes):
            del self.prompts[previous]
        self.prompts = [*self.prompts, prompt][-MAX_PROMPTS:]
        return max(num_own, num_shared), num_shared >= num_own

    def use(self, reader: PrefixReader, run: RunKey | int, *, is_shared: bool) -> None:
        """Record that a run reads a prefix.

        Args:
            is_shared: it is known that others read it, too.
        """
        prefix = self.prefixes.setdefault(reader, _Prefix(run, is_shared))
        prefix.is_shared |= is_shared or prefix.run != run
        self.prefixes.move_to_end(reader)

    @property
    def num_bytes(self) -> int:
        num_hashes = sum(len(prompt.hashes) for prompt in self.prompts)
        runs = [prompt.run for prompt in self.prompts]
        runs += [prefix.run for prefix in self.prefixes.values()]
        names = [run.workflow_id for run in runs if isinstance(run, RunKey)]
        return (
            _AGENT_BYTES
            + sum(map(sys.getsizeof, (self.reader.agent, *names)))
            + _PREFIX_BYTES * len(self.prefixes)
            + _PROMPT_BYTES * len(self.prompts)
            + 8 * num_hashes
        )


class AgentPrefixes:
    """Learns the fixed prefixes of agents by comparing each prompt with the agent's last ones.

    Args:
        release: called with each prefix and each agent that is forgotten.
    """

    def __init__(
        self,
        release: Callable[[AgentReader | PrefixReader], object],
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._release = release
        self._agents: TenantLru[AgentReader, _Agent] = TenantLru(max_bytes, self._forget)

    def __iter__(self) -> Iterator[AgentReader]:
        return iter(self._agents)

    @property
    def usage(self) -> Usage:
        return self._agents.usage

    def knows(self, agent: AgentReader) -> bool:
        """Return whether an agent has called and is not forgotten."""
        return self._agents.get(agent.tenant, agent) is not None

    def of(self, agent: AgentReader) -> list[PrefixReader]:
        """Return the prefixes of an agent, the one used least recently first."""
        record = self._agents.get(agent.tenant, agent)
        return [] if record is None else list(record.prefixes)

    def shared(self, agent: AgentReader) -> list[PrefixReader]:
        """Return the prefixes of an agent that a run reads which has not called it before.

        Those are the last ones used that several runs have read, or the only one that is known.
        """
        record = self._agents.get(agent.tenant, agent)
        if record is None:
            return []
        if len(record.prefixes) == 1:
            return list(record.prefixes)
        shared = [reader for reader, prefix in record.prefixes.items() if prefix.is_shared]
        return shared[-MAX_SHARED:]

    def note_call(
        self, agent: AgentReader, request: Request, run: RunKey | None, page_size: int, now: float
    ) -> FixedPrefix:
        """Record a call of an agent, in a run or in none, and return the prompt's fixed prefix.

        A declared length is returned as it is. A learned one is 0 at the agent's first call.
        """
        record = self._agents.use(agent.tenant, agent) or _Agent(agent, now)
        agent = record.reader
        record.last_seen_s = now
        assert request.hints is not None
        hashes = block_hashes(request, request.num_prompt, page_size)
        caller = request.id if run is None else run
        num_fixed, is_shared = request.hints.num_fixed, False
        if num_fixed is None:
            num_blocks, is_shared = record.learn(_Prompt(caller, hashes))
            num_fixed = num_blocks * page_size
        num_blocks = min(num_fixed, request.num_prompt) // page_size
        reader = None
        if num_blocks:
            reader = PrefixReader(agent.tenant, agent.agent, int(hashes[num_blocks - 1]))
            record.use(reader, caller, is_shared=is_shared)
            if len(record.prefixes) > MAX_PREFIXES:
                self._release(record.prefixes.popitem(last=False)[0])
        # A working set is at most as long as the prompt.
        self._agents.put(agent.tenant, agent, record, record.num_bytes + 8 * len(hashes))
        return FixedPrefix(num_fixed, reader)

    def expire(self, now: float) -> None:
        """Forget the agents without a call in the last ``AGENT_TTL_S`` seconds."""
        expired = self._agents.pop_oldest(
            lambda record: now - record.last_seen_s >= AGENT_TTL_S, MAX_EXPIRED
        )
        for agent, record in expired:
            self._forget(agent, record)

    def _forget(self, agent: AgentReader, record: _Agent) -> None:
        for reader in record.prefixes:
            self._release(reader)
        self._release(agent)
