"""An oracle that evicts the block read last (Belady 1966), by the record of a previous run.

In a closed loop the future depends on evictions. Hence an arm runs once and the order in which its
calls start is recorded; the next run evicts by that order and is recorded in turn, until the order
repeats.

The oracle bounds eviction only, and only roughly: prefetch and scheduling are KVFlow's, both
influence the order of calls, and all blocks count alike whatever they cost to compute. An arm with
fewer wasted prefetches, or with admission control, may be faster.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from experiments.compare.driver import CallRecord, Submitted
from experiments.workloads.base import Run, Workload
from kvflow_jax.cache.policy import BlockFacts, lru
from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.engine.trace import NoTrace
from kvflow_jax.requests.request import Request

_NEVER = np.inf


class Oracle(NoTrace):
    """The next read of every block, by the order of calls in the previous run.

    Calls share blocks as far as the parts of their prompts are the same objects. As a tracer, the
    oracle learns from the engine which blocks a finished call leaves in the cache.

    Attributes:
        order: (tenant, workflow id, number) of each call, in order of their start.
    """

    def __init__(self, workload: Workload, records: Sequence[CallRecord], page_size: int) -> None:
        started = sorted(records, key=lambda r: (r.start_s, r.tenant, r.workflow_id, r.number))
        self.order = [(r.tenant, r.workflow_id, r.number) for r in started]
        self._page = page_size
        rank = {call: index for index, call in enumerate(self.order)}
        self._rank = {
            (run, number): rank[run.tenant, run.workflow_id, number]
            for run in workload.runs
            for number in range(len(run.calls))
        }
        self._nodes: dict[tuple[int, Hashable], int] = {}  # (parent node, part) -> node
        self._readers: dict[int, list[int]] = {}  # node -> ranks of its readers, latest first
        self._paths: dict[tuple[Run, int], tuple[np.ndarray, list[int]]] = {}
        for run, number in sorted(self._rank, key=self._rank.__getitem__, reverse=True):
            ends, nodes = self._path(run, number)
            self._paths[run, number] = ends, nodes
            for node in nodes[:-1]:  # the last node is the call's own output
                self._readers.setdefault(node, []).append(self._rank[run, number])
        self._is_done = np.zeros(len(self.order), bool)
        self._submitted: Callable[[int], Submitted]
        self._cache: PrefixCache | None = None
        self._next_read = np.empty(0)
        self._generation = np.empty(0, np.uint32)

    def listen(self, submitted: Callable[[int], Submitted], cache: PrefixCache) -> None:
        """Attach to an engine with this cache; ``submitted`` maps a request id to its call."""
        self._submitted, self._cache = submitted, cache
        self._next_read = np.full(cache.num_block_ids, _NEVER)
        self._generation = np.full(cache.num_block_ids, -1, np.int64)

    def eviction_order(self, facts: BlockFacts) -> np.ndarray:
        """Evict blocks read last, or never, first: an eviction policy, with keys f64[n, 2].

        Orders by last use until the oracle is attached to an engine.
        """
        if self._cache is None:
            return lru(facts)
        keys = np.empty((len(facts), 2))
        is_known = self._generation[facts.blocks] == facts.generation
        # An unknown block belongs to a preempted call, which will read it soonest.
        keys[:, 0] = np.where(is_known, -self._next_read[facts.blocks], 0.0)
        keys[:, 1] = facts.last_use
        return keys

    def on_finish(self, request: Request, now: float) -> None:
        run, number = self._submitted(request.id)
        self._is_done[self._rank[run, number]] = True
        if request.lease is None or self._cache is None:
            return
        ends, nodes = self._paths[run, number]
        blocks = request.lease.blocks
        last_tokens = self._page * (1 + np.arange(len(blocks)))
        indices = np.minimum(np.searchsorted(ends, last_tokens), len(nodes) - 1)
        reads = np.array([self._next_reader(node) for node in nodes])
        self._next_read[blocks] = reads[indices]
        self._generation[blocks] = self._cache.generations(blocks)

    def _next_reader(self, node: int) -> float:
        readers = self._readers.get(node, [])
        while readers and self._is_done[readers[-1]]:
            readers.pop()
        # Calls that started out of the recorded order may be at any position.
        return next((float(r) for r in reversed(readers) if not self._is_done[r]), _NEVER)

    def _path(self, run: Run, number: int) -> tuple[np.ndarray, list[int]]:
        """Return the end of each part of a call, i64[n], its output last; and the node of each."""
        call = run.calls[number]
        nodes, lengths, node = [], [], -1
        for part in (*call.parts, number):
            name: Hashable
            if isinstance(part, int):  # the output of an earlier call
                name, length = (id(run), part), run.calls[part].num_output
            else:
                name, length = id(part), len(part)
            node = self._nodes.setdefault((node, name), len(self._nodes))
            nodes.append(node)
            lengths.append(length)
        return np.cumsum(lengths), nodes
