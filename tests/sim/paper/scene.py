"""Agents on a real engine in virtual time, whose blocks a test can look at.

A prompt is written as parts, such as ``("base", 4), ("coder", 2)``: 4 blocks that all prompts with
this part share, then 2 of the coder's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kvflow_jax.cache.index import RootKey
from kvflow_jax.cache.next_read import NextRead, ReadKind
from kvflow_jax.engine.cache_config import CacheConfig
from kvflow_jax.requests.outputs import Output, RequestStats
from kvflow_jax.requests.request_spec import RequestSpec
from kvflow_jax.requests.sampling_params import SamplingParams
from kvflow_jax.sim.machines import A10G, LLAMA_3_1_8B
from kvflow_jax.sim.simulation import Simulation
from kvflow_jax.workflow.hints import Hints, Reuse
from kvflow_jax.workflow.step_graph import Graph
from kvflow_jax.workflow.workflow import Workflow

PAGE = 16
Part = tuple[str, int]  # name, number of blocks
NEVER, UNKNOWN, SUFFIX = "never", "unknown", "suffix"
_KINDS = {ReadKind.NEVER: NEVER, ReadKind.UNKNOWN: UNKNOWN, ReadKind.SUFFIX: SUFFIX}


@dataclass
class Call:
    """One call of an agent: its prompt, and what came of it."""

    tokens: list[int]
    names: list[str]  # of the part of each block of the prompt
    outputs: list[Output] = field(default_factory=list)

    @property
    def has_begun(self) -> bool:
        return bool(self.outputs)

    @property
    def stats(self) -> RequestStats:
        stats = self.outputs[-1].stats
        assert stats is not None, "the call is in progress"
        return stats

    @property
    def is_done(self) -> bool:
        return self.has_begun and self.outputs[-1].stats is not None


class Scene:
    """An engine whose integrity is checked at every step.

    Args:
        num_blocks: of the device tier.
        num_host_blocks: of the host tier; 0: none.
        graph: of all runs that name none.
        link_bytes_per_s: of the link to the host; a block has 2 MiB.
        cache: settings of the cache.
    """

    def __init__(
        self,
        num_blocks: int = 512,
        num_host_blocks: int = 0,
        graph: Workflow | None = None,
        link_bytes_per_s: float = A10G.link_bytes_per_s,
        cache: CacheConfig | None = None,
    ) -> None:
        self.simulation = Simulation(
            LLAMA_3_1_8B,
            replace(A10G, link_bytes_per_s=link_bytes_per_s),
            cache or CacheConfig(mode="kvflow", guard=False),
            pool_tokens=num_blocks * PAGE,
            host_tokens=num_host_blocks * PAGE,
            max_num_seqs=8,
            max_prefill_tokens=512,
            max_model_len=num_blocks * PAGE,
            page_size=PAGE,
            checks_every=1,
        )
        self.engine, self.graph = self.simulation.engine, graph
        self._numbers = itertools.count()
        self._token_of: dict[str, int] = {}
        self._calls: list[Call] = []

    # Calls.

    def submit(
        self,
        agent: str | None,
        *parts: Part,
        run: str | None = None,
        tenant: str = "",
        fixed: int | None = None,
        num_tokens: int = 4,
        hints: Mapping[str, object] | None = None,
    ) -> Call:
        """Submit a call whose prompt ends with two blocks of its own, the dynamic suffix.

        Args:
            fixed: blocks of the declared fixed prompt; None: all parts.
            num_tokens: of its answer.
            hints: further ones.
        """
        suffix = ("suffix", 2)
        names = [name for name, num in (*parts, suffix) for _ in range(num)]
        tokens = self._tokens([*parts, (f"suffix {next(self._numbers)}", 2)])
        call = Call(tokens, names)
        given = None
        if agent is not None:
            graph = self._graph() if run is not None else None
            num_fixed = PAGE * (sum(num for _, num in parts) if fixed is None else fixed)
            fields = {"graph": graph, "num_fixed": num_fixed, **(hints or {})}
            given = Hints(workflow_id=run, agent_id=agent, **fields)  # type: ignore[arg-type]
        spec = RequestSpec(
            tokens,
            SamplingParams(max_tokens=num_tokens, temperature=0.0),
            tenant=tenant,
            hints=given,
        )
        self.simulation.submit(spec, call.outputs.append)
        self._calls.append(call)
        return call

    def begin(self, agent: str | None, *parts: Part, **kwargs) -> Call:  # type: ignore[no-untyped-def]
        """Submit a call and advance until its answer begins."""
        call = self.submit(agent, *parts, **kwargs)
        while not call.has_begun:
            assert self.simulation.step()
        return call

    def call(self, agent: str | None, *parts: Part, **kwargs) -> Call:  # type: ignore[no-untyped-def]
        """Make a call, and wait until it and all transfers have ended."""
        call = self.submit(agent, *parts, **kwargs)
        self.settle()
        assert call.is_done
        return call

    def settle(self) -> None:
        """Advance until all calls and transfers have ended."""
        self.simulation.run()

    # Blocks.

    def next_read(self, *parts: Part) -> NextRead:
        """Return the next read of the last block of a prefix, which must be cached."""
        blocks = self._match(self._tokens(parts))
        assert len(blocks) == sum(num for _, num in parts), "not cached"
        return self.engine.cache.next_read_of(int(blocks[-1]))

    def steps(self, *parts: Part) -> float | str:
        """Return the steps-to-execution at the end of a prefix, or what else is known of it."""
        read = self.next_read(*parts)
        return _KINDS.get(read.kind, read.distance)

    def steps_of(self, agents: Sequence[str], num_blocks: int = 2) -> dict[str, float | str]:
        """Return the steps at the end of prompts that are named like their agents."""
        return {agent: self.steps((agent, num_blocks)) for agent in agents}

    def on_device(self, *parts: Part) -> int:
        """Return how many leading blocks of a prefix are valid on the device."""
        return self.engine.cache.state_of(self._match(self._tokens(parts))).num_valid

    def on_host(self, *parts: Part) -> int:
        """Return how many leading blocks of a prefix have a copy on the host."""
        return self.engine.cache.tiers.num_copied(self._match(self._tokens(parts)))

    def suffix_on_host(self, call: Call) -> int:
        """Return how many blocks of a call's suffix have a copy on the host."""
        suffix = self._match(call.tokens)[call.names.index("suffix") :]
        return self.engine.cache.tiers.num_copied(suffix)

    def evict_all(self) -> list[str]:
        """Evict block by block; return the parts that they belong to, in the order of eviction.

        Neighbours of the same part count once.
        """
        cache, names = self.engine.cache, dict[int, str]()
        for call in self._calls:
            blocks = self._match(call.tokens).tolist()
            names |= dict(zip(blocks, call.names, strict=False))
        order = []
        while (block := cache.next_victim()) is not None:
            order.append(names.get(block, "suffix"))  # that of an answer
            cache.evict(1, self.simulation.clock.now())
            self.engine.check_integrity()
        return [name for name, _ in itertools.groupby(order)]

    def fill(self, num_blocks: int) -> None:
        """Have a call that nothing will continue take blocks, so that others are evicted."""
        part = (f"filler {next(self._numbers)}", num_blocks - 3)
        self.call("filler", part, fixed=0, hints={"reuse": Reuse.DISCARD})

    def _graph(self) -> Graph | None:
        return None if self.graph is None else self.graph.freeze()

    def _match(self, tokens: Sequence[int]) -> np.ndarray:
        root = RootKey(LLAMA_3_1_8B.name)
        return self.engine.cache.match(root, np.asarray(tokens, np.int32))

    def _tokens(self, parts: Sequence[Part]) -> list[int]:
        numbers = [
            (self._token_of.setdefault(name, 100_000 + len(self._token_of)), num)
            for name, num in parts
        ]
        return [token for token, num in numbers for _ in range(num * PAGE)]
