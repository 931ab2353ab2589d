"""Tells the cache who will read what again and how soon, from what callers say and do.

    hints of requests ──▶ Progress (runs, steps) ──▶ anchors of the cache ──▶ eviction
                                                          │
                                                          └──▶ Planner ──▶ moves

Knows nobody's tokens and nobody's device: it reads requests as they begin and end, and tells the
cache. Everything here is advice made of advice: wrong guesses cost hits, never tokens.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from itertools import count

import numpy as np

from kvflow_jax.admission import Admission
from kvflow_jax.block_keys import block_keys
from kvflow_jax.cache.anchors import LIKELIHOOD_SPREAD, NEVER_STEPS, UNKNOWN_STEPS
from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.hints import Hints, HintStatus, Reuse
from kvflow_jax.planner import LoadPays, Planner
from kvflow_jax.progress import AgentKey, Progress, Run
from kvflow_jax.request import Request
from kvflow_jax.step_graph import Graph
from kvflow_jax.watch import Watch

MAX_GRAPHS = 10_000
MAX_AGENTS = 200_000
AGENT_TTL_S = 3600.0  # a fixed prefix that no call has read for this long is nobody's
HISTORY_TTL_S = 600.0  # a conversation of which nothing is heard
EXPIRE_EVERY_S = 1.0


@dataclass(slots=True)
class _Agent:
    """What is known of an agent beside its steps."""

    last_seen_s: float
    pages: np.ndarray | None = None  # i64[n], hashes of the pages of its last prompt


@dataclass(slots=True)
class _History:
    """A conversation that will be continued, or what a caller asked to keep."""

    expires_s: float
    run: Run | None
    agent: str | None


class Controller:
    """Advises one cache.

    Args:
        prefetches: bring back what agents will read before they ask.
        backs_up_early: copy what is worth it while the link is idle, not only when it must go.
        keeps_everything: whether everything cached is worth a copy, as hierarchical caches have
            it, or only what somebody is known to read again.
        load_pays: see ``Planner``.
        watches: whether recency takes over for clients whose graphs mislead.
        compute_s: see ``Admission``; given, runs may be held back.
    """

    def __init__(
        self,
        cache: PrefixCache,
        *,
        prefetches: bool,
        backs_up_early: bool,
        keeps_everything: bool,
        load_pays: LoadPays | None = None,
        watches: bool = False,
        compute_s: Callable[[int], float] | None = None,
    ) -> None:
        self.progress = Progress()
        self.planner = Planner(cache, prefetches=prefetches, load_pays=load_pays)
        self._backs_up_early = backs_up_early
        self._keeps_everything = keeps_everything
        self._graphs: OrderedDict[tuple[str, str], Graph] = OrderedDict()
        self._agents: OrderedDict[AgentKey, _Agent] = OrderedDict()
        self._histories: OrderedDict[Hashable, _History] = OrderedDict()
        self._runs: dict[int, Run] = {}  # of requests in progress
        self._fixed: dict[int, int] = {}  # tokens of their fixed prefixes
        self._expiries: list[tuple[float, int, Hashable]] = []  # a heap; some are out of date
        self._numbers = count()
        self._expired_s = 0.0
        self._cache = cache
        self._watch = Watch(cache.table.num_slots, cache.page_size) if watches else None
        self._admission: Admission | None = None
        if compute_s is not None:
            park = partial(self.progress.park, is_parked=True)
            resume = partial(self.progress.park, is_parked=False)
            self._admission = Admission(self._num_blocks, compute_s, park, resume)

    def reset(self, cache: PrefixCache) -> None:
        """Advise another cache, which is empty."""
        self._cache = cache
        self.planner.reset(cache)
        if self._watch is not None:
            self._watch.reset()

    # Graphs and runs, as clients tell of them.

    def register(self, client: str, graph_id: str, graph: Graph) -> None:
        """Keep a workflow under a name for the client's runs."""
        self._graphs[client, graph_id] = graph
        self._graphs.move_to_end((client, graph_id))
        while len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)

    def unregister(self, client: str, graph_id: str) -> bool:
        """Forget a workflow; False where there is none of this name. Its runs go on."""
        return self._graphs.pop((client, graph_id), None) is not None

    def begin_run(
        self, client: str, workflow_id: str, graph: Graph | None, graph_id: str | None, now: float
    ) -> HintStatus:
        """Begin a run before its first request."""
        registered = self._graphs.get((client, graph_id)) if graph_id is not None else None
        self.progress.run((client, workflow_id), graph or registered, now)
        self._tell()
        is_known = graph_id is None or registered is not None or graph is not None
        return HintStatus.APPLIED if is_known else HintStatus.UNKNOWN_GRAPH

    def advance(
        self, client: str, workflow_id: str, completed: list[str], running: list[str], now: float
    ) -> list[str] | None:
        """Take in progress that a client reports; agents its graph lacks, None: no such run."""
        run = self.progress.find((client, workflow_id))
        if run is None:
            return None
        self.progress.touch(run, now)
        unknown = self.progress.advance(run, completed, running)
        self._tell()
        return unknown

    def end_run(self, client: str, workflow_id: str) -> bool:
        """A run is over; False where there is none of this name."""
        run = self.progress.find((client, workflow_id))
        if run is None:
            return False
        self._end_run(run)
        self._tell()
        return True

    # A request's life.

    def arrive(self, request: Request, now: float) -> HintStatus | None:
        """A request was queued; what became of its hints, None where it has none."""
        hints = request.hints
        if hints is None:
            return None
        if hints.is_empty:
            return HintStatus.IGNORED
        status = HintStatus.CLIPPED if hints.is_clipped else HintStatus.APPLIED
        if hints.workflow_id is not None:
            key = (request.owner, hints.workflow_id)
            graph, is_known = self._graph_of(request.owner, hints)
            run = self.progress.run(key, graph, now)
            if not is_known:
                status = HintStatus.UNKNOWN_GRAPH
            self._runs[request.id] = run
            if hints.agent_id is not None:
                follows = run.state.graph if run.state is not None else None
                if follows is not None and hints.agent_id not in follows.nodes_of:
                    status = HintStatus.CLIPPED
                self.progress.start(run, hints.agent_id)
            self._note_arrival(run, request.owner, now)
        if hints.agent_id is not None:
            self._note_agent(request, hints.agent_id, now)
        self._tell()
        return status

    def may_begin(self, request: Request) -> bool:
        """Whether a request need not wait for its run's turn."""
        run = self._runs.get(request.id)
        if self._admission is None or run is None or request.first_scheduled_s is not None:
            return True
        return not self._admission.holds_back(run.key)

    @property
    def num_held_back(self) -> int:
        """Runs whose requests wait until others have had their turn."""
        return 0 if self._admission is None else self._admission.num_queued

    def check_integrity(self) -> None:
        """Raise IntegrityError where counts are wrong."""
        if self._admission is not None:
            self._admission.check_integrity()

    def computed(self, request: Request, now: float) -> None:
        """A request's prompt is in the cache."""
        hints = request.hints
        num_fixed = self._fixed.pop(request.id, 0)
        if self._watch is not None:
            is_led = hints is not None and hints.agent_id is not None
            if self._watch.read(request, is_led=is_led):
                self._trust_anew(request.owner)
        if hints is None or hints.agent_id is None or hints.reuse is Reuse.DISCARD:
            return
        agent = (request.owner, hints.agent_id)
        self._note_lost(request, ("agent", *agent), ("session", request.owner, hints.session_id))
        prefix = request.tokens[: min(num_fixed, request.num_prompt)]
        self._note_reads(("agent", *agent), request, len(prefix))
        self._anchor(("agent", *agent), request, prefix, self._steps(agent))

    def hold_place(self, request: Request, num_tokens: int) -> None:
        """A request was set back with ``num_tokens`` computed, which it will soon read again."""
        tokens = request.tokens[: min(num_tokens, request.num_known)]
        if not request.is_finished:
            self._cache.anchor(("request", request.id), request.root, tokens, 0.0)

    def finish(self, request: Request, now: float, *, is_done: bool) -> None:
        """A request ended, with an answer or without one; its blocks are still leased."""
        hints = request.hints
        self._fixed.pop(request.id, None)
        self._cache.unanchor(("request", request.id))
        if self._watch is not None:
            self._watch.write(request)
        if self._keeps_everything and self._backs_up_early and request.lease is not None:
            num_indexed = request.lease.num_indexed
            if num_indexed:
                self.planner.save_later(int(request.lease.blocks[num_indexed - 1]))
        if hints is None or hints.is_empty:
            return
        run = self._runs.pop(request.id, None)
        agent = hints.agent_id
        if agent is not None and is_done and request.first_scheduled_s is not None:
            self.planner.note_call(now - request.first_scheduled_s)
        if run is not None and agent is not None:
            chances = hints.next_agents.items()
            said = {name: LIKELIHOOD_SPREAD * (1.0 - chance) for name, chance in chances}
            said.update(hints.steps_to_execution)
            self.progress.finish(run, agent, is_done=is_done, said=said)
            self.progress.touch(run, now)
        if run is not None and self._admission is not None:
            self._admission.called(run.key, now)
        self._note_history(request, hints, run, now)
        if hints.session_final and run is not None and hints.session_id is None:
            self._end_run(run)
        self._decide(now)
        self._tell()

    def expire(self, now: float) -> None:
        """Forget runs, conversations and agents of which nothing has been heard for long."""
        if now - self._expired_s < EXPIRE_EVERY_S:
            return
        self._expired_s = now
        self.progress.expire(now)
        while self._expiries and self._expiries[0][0] <= now:
            expires_s, _, owner = heapq.heappop(self._expiries)
            history = self._histories.get(owner)
            if history is not None and history.expires_s == expires_s:
                self._forget_history(owner)
        while self._agents:
            agent, record = next(iter(self._agents.items()))
            if now - record.last_seen_s < AGENT_TTL_S:
                break
            del self._agents[agent]
            self._forget_agent(agent)
        self._decide(now)
        self._tell()

    def _graph_of(self, client: str, hints: Hints) -> tuple[Graph | None, bool]:
        if hints.graph is not None:
            return hints.graph, True
        if hints.graph_id is None:
            return None, True
        graph = self._graphs.get((client, hints.graph_id))
        return graph, graph is not None

    def _note_agent(self, request: Request, agent_id: str, now: float) -> None:
        """Note a call, and how far the agent's prompts agree."""
        key = (request.owner, agent_id)
        record = self._agents.get(key)
        if record is None:
            record = self._agents[key] = _Agent(now)
            while len(self._agents) > MAX_AGENTS:
                self._forget_agent(self._agents.popitem(last=False)[0])
        record.last_seen_s = now
        self._agents.move_to_end(key)
        hints = request.hints
        assert hints is not None
        if hints.num_fixed is not None:
            self._fixed[request.id] = hints.num_fixed
            record.pages = None
            return
        page = self._cache.page_size
        num_pages = request.num_prompt // page
        pages = request.tokens[: num_pages * page].reshape(num_pages, page)
        hashes = np.fromiter((hash(one.tobytes()) for one in pages), np.int64, num_pages)
        if record.pages is not None:
            both = min(len(hashes), len(record.pages))
            differ = hashes[:both] != record.pages[:both]
            self._fixed[request.id] = (int(differ.argmax()) if differ.any() else both) * page
        record.pages = hashes

    def _note_history(self, request: Request, hints: Hints, run: Run | None, now: float) -> None:
        """Keep what a conversation will be continued from, or let it go."""
        owner: Hashable
        if hints.session_id is not None:
            owner = ("session", request.owner, hints.session_id)
        else:
            owner = ("kept", request.owner, hints.workflow_id, hints.agent_id)
        is_over = hints.session_final or hints.reuse is Reuse.DISCARD
        if is_over or (hints.session_id is None and hints.reuse is not Reuse.KEEP):
            self._forget_history(owner)
            return
        ttl_s = HISTORY_TTL_S if hints.ttl_s is None else hints.ttl_s
        self._forget_history(owner, keeps_anchor=True)
        self._histories[owner] = _History(now + ttl_s, run, hints.agent_id)
        heapq.heappush(self._expiries, (now + ttl_s, next(self._numbers), owner))
        if len(self._expiries) > 2 * len(self._histories) + 64:
            self._expiries = [
                (history.expires_s, next(self._numbers), owner)
                for owner, history in self._histories.items()
            ]
            heapq.heapify(self._expiries)
        while len(self._histories) > MAX_AGENTS:
            self._forget_history(next(iter(self._histories)))
        steps = UNKNOWN_STEPS
        if run is not None and hints.agent_id is not None:
            steps = self.progress.attach(run, hints.agent_id, owner)
            if self._admission is not None:
                self._admission.join(run.key, [owner])
        num_written = min(request.num_computed, request.num_known)
        if num_written:  # else it never ran, and the history is as it was
            self._note_reads(owner, request, num_written)
            self._anchor(owner, request, request.tokens[:num_written], steps)

    def _forget_history(self, owner: Hashable, *, keeps_anchor: bool = False) -> None:
        history = self._histories.pop(owner, None)
        if history is None:
            return
        if history.run is not None and history.agent is not None:
            self.progress.detach(history.run, history.agent, owner)
        if not keeps_anchor:
            self._cache.unanchor(owner)
            if self._admission is not None:
                self._admission.forget(owner)

    def _end_run(self, run: Run) -> None:
        """A run and the conversations of its agents are over."""
        for owners in list(run.owners.values()):
            for owner in list(owners):
                self._forget_history(owner)
        if self.progress.find(run.key) is run:  # not another of its name
            self.progress.end(run.key)

    def _anchor(self, owner: Hashable, request: Request, tokens: np.ndarray, steps: float) -> None:
        if not self._cache.anchor(owner, request.root, tokens, steps):
            return
        if self._backs_up_early and not self._keeps_everything:
            head = self._cache.anchors.node_of(owner)
            end = None if head is None else self._cache.end_of(head)
            if end is not None:
                self.planner.save_later(end)

    def _forget_agent(self, agent: AgentKey) -> None:
        self._cache.unanchor(("agent", *agent))
        if self._admission is not None:
            self._admission.forget(("agent", *agent))

    def _note_arrival(self, run: Run, client: str, now: float) -> None:
        """A run has a call more, and may have to wait for its turn."""
        self._drop_ended()
        if self._admission is not None:
            agents = [agent for agent, steps in run.values.items() if steps < NEVER_STEPS]
            self._admission.call(run.key, [("agent", client, agent) for agent in agents], now)

    def _note_reads(self, owner: Hashable, request: Request, num_tokens: int) -> None:
        if self._admission is not None:
            self._admission.reads(owner, block_keys(request, num_tokens, self._cache.page_size))

    def _note_lost(self, request: Request, *owners: Hashable) -> None:
        if self._admission is not None:
            page = self._cache.page_size
            keys = block_keys(request, request.num_prompt, page)
            self._admission.found(keys, (request.num_cached or 0) // page, owners)

    def _drop_ended(self) -> None:
        """Runs that are over need no turn any more."""
        if self._admission is not None:
            for run in self.progress.ended:
                self._admission.end(run)
        self.progress.ended.clear()

    def _decide(self, now: float) -> None:
        self._drop_ended()
        if self._admission is not None:
            self._admission.decide(now)

    def _num_blocks(self) -> int:
        """What both tiers hold."""
        return self._cache.table.num_slots + self._cache.residency.host.max_blocks

    def _tell(self) -> None:
        """Pass on to the cache whose steps have changed."""
        changes = self.progress.changes
        for owner, steps in changes.items():
            match owner:
                case ("agent", str(client), str(agent)):
                    steps = self._steps((client, agent))
            self._cache.set_steps(owner, steps)
        changes.clear()

    def _steps(self, agent: AgentKey) -> float:
        """Steps of an agent, as far as its client's graphs are to be believed."""
        if self._watch is not None and self._watch.is_misled(agent[0]):
            return UNKNOWN_STEPS
        return self.progress.steps(agent)

    def _trust_anew(self, client: str) -> None:
        """A client's graphs are believed no longer, or again."""
        for agent in self._agents:
            if agent[0] == client:
                self._cache.set_steps(("agent", *agent), self._steps(agent))
