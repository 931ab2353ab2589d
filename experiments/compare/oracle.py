"""An oracle: evicts what will be read last (Belady 1966), knowing the future from a run before.

In a closed loop the future depends on what is evicted. So an arm is played once and the order in
which its calls started is recorded; the next run evicts by that order and is recorded in turn,
until the order stays as it was.

That bounds nothing but eviction, and no more than roughly: prefetch and scheduler are KVFlow's, who
runs next hangs on both, and blocks cost the same whatever they would take to compute. An arm that
prefetches less in vain, or lets runs take turns, may be faster.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from experiments.compare.driver import CallRecord, Submitted
from experiments.workloads.base import Run, Workload
from kvflow_jax.cache.blocks import BlockTable
from kvflow_jax.engine.trace import NoTrace
from kvflow_jax.requests.request import Request

_NOBODY = np.inf


class Oracle(NoTrace):
    """Knows which calls read a block, and in which order they started when last played.

    What two calls have in common is told from the parts of their prompts. It listens to the engine
    for which blocks a call has left behind.

    Attributes:
        order: (client, workflow, number) of the calls, the first first.
    """

    def __init__(self, workload: Workload, records: Sequence[CallRecord], page_size: int) -> None:
        started = sorted(records, key=lambda r: (r.start_s, r.client, r.workflow_id, r.number))
        self.order = [(r.client, r.workflow_id, r.number) for r in started]
        self._page = page_size
        rank = {call: place for place, call in enumerate(self.order)}
        self._rank = {
            (run, number): rank[run.client, run.workflow_id, number]
            for run in workload.runs
            for number in range(len(run.calls))
        }
        self._nodes: dict[tuple[int, Hashable], int] = {}  # (node above, part) -> node
        self._readers: dict[int, list[int]] = {}  # of each node, ranks, the first last
        self._paths: dict[tuple[Run, int], tuple[np.ndarray, list[int]]] = {}
        for run, number in sorted(self._rank, key=self._rank.__getitem__, reverse=True):
            ends, nodes = self._path(run, number)
            self._paths[run, number] = ends, nodes
            for node in nodes[:-1]:  # not of its answer
                self._readers.setdefault(node, []).append(self._rank[run, number])
        self._is_done = np.zeros(len(self.order), bool)
        self._submitted: Callable[[int], Submitted]
        self._table: BlockTable | None = None
        self._next_read = np.empty(0)
        self._generation = np.empty(0, np.uint32)

    def listen(self, submitted: Callable[[int], Submitted], table: BlockTable) -> None:
        """Follow an engine with this table; ``submitted`` names the call of a request's id."""
        self._submitted, self._table = submitted, table
        self._next_read = np.full(len(table.page), _NOBODY)
        self._generation = np.full(len(table.page), -1, np.int64)

    def eviction_order(self, table: BlockTable, blocks: np.ndarray) -> np.ndarray:
        """f64[n, 2], for ``POLICIES``: what is read last, or never, goes first."""
        keys = np.empty((len(blocks), 2))
        is_known = self._generation[blocks] == table.generation[blocks]
        # What is not known belongs to a call that was set back, and comes at once.
        keys[:, 0] = np.where(is_known, -self._next_read[blocks], 0.0)
        keys[:, 1] = table.last_use[blocks]
        return keys

    def finished(self, request: Request, now: float) -> None:
        run, number = self._submitted(request.id)
        self._is_done[self._rank[run, number]] = True
        if request.lease is None or self._table is None:
            return
        ends, nodes = self._paths[run, number]
        blocks = request.lease.blocks
        last_tokens = self._page * (1 + np.arange(len(blocks)))
        places = np.minimum(np.searchsorted(ends, last_tokens), len(nodes) - 1)
        reads = np.array([self._next_reader(node) for node in nodes])
        self._next_read[blocks] = reads[places]
        self._generation[blocks] = self._table.generation[blocks]

    def _next_reader(self, node: int) -> float:
        readers = self._readers.get(node, [])
        while readers and self._is_done[readers[-1]]:
            readers.pop()
        # Those that started out of the order they were recorded in may stand anywhere.
        return next((float(r) for r in reversed(readers) if not self._is_done[r]), _NOBODY)

    def _path(self, run: Run, number: int) -> tuple[np.ndarray, list[int]]:
        """Where the parts of a call end, its answer last, i64[n]; and a node for each."""
        call = run.calls[number]
        nodes, lengths, node = [], [], -1
        for part in (*call.parts, number):
            name: Hashable
            if isinstance(part, int):  # an answer
                name, length = (id(run), part), run.calls[part].num_output
            else:
                name, length = id(part), len(part)
            node = self._nodes.setdefault((node, name), len(self._nodes))
            nodes.append(node)
            lengths.append(length)
        return np.cumsum(lengths), nodes
