"""Tells the cache who will read what again and how soon, from what callers say and do.

    hints of requests ──▶ Progress (runs, steps) ──▶ anchors of the cache ──▶ eviction
                            ▲                             │
                            └── Turns (which runs wait)   └──▶ Planner ──▶ moves

Knows nobody's tokens and nobody's device: it reads requests as they begin and end, and tells the
cache. Everything here is advice made of advice: wrong guesses cost hits, never tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.cache.reuse_tracker import LIKELIHOOD_SPREAD, UNKNOWN_STEPS
from kvflow_jax.control.admission.admission_gate import Turns
from kvflow_jax.control.agent_prefixes import Agents
from kvflow_jax.control.prefetcher import LoadPays, Planner
from kvflow_jax.control.run_tracker import AgentKey, Progress, Run
from kvflow_jax.control.session_store import Histories, history_of
from kvflow_jax.control.shadow_lru import Watch
from kvflow_jax.requests.request import Request
from kvflow_jax.workflow.hints import Hints, HintStatus, Reuse
from kvflow_jax.workflow.step_graph import Graph

MAX_GRAPHS = 10_000
HISTORY_TTL_S = 600.0  # a conversation of which nothing is heard
EXPIRE_EVERY_S = 1.0


class Controller:
    """Advises one cache.

    Args:
        prefetches: bring back what agents will read before they ask.
        backs_up_early: copy what is worth it while the link is idle, not only when it must go.
        keeps_everything: whether everything cached is worth a copy, as hierarchical caches have
            it, or only what somebody is known to read again.
        load_pays: see ``Planner``.
        watches: whether recency takes over for clients whose graphs mislead, and runs of which
            nothing is heard count as far.
        compute_s, decode_s: see ``Admission``; given, runs may be held back.
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
        decode_s: Callable[[], float] | None = None,
    ) -> None:
        self.progress = Progress(notes_quiet=watches)
        self.planner = Planner(cache, prefetches=prefetches, load_pays=load_pays)
        self._backs_up_early = backs_up_early
        self._keeps_everything = keeps_everything
        self._graphs: OrderedDict[tuple[str, str], Graph] = OrderedDict()
        self._agents = Agents(lambda agent: self._let_go(("agent", *agent)))
        self._histories = Histories(self.progress, self._let_go)
        self._turns = Turns(cache, self.progress, compute_s, decode_s)
        self._runs: dict[int, Run] = {}  # of requests in progress
        self._fixed: dict[int, int] = {}  # tokens of their fixed prefixes
        self._expired_s = 0.0
        self._cache = cache
        self._watch = Watch(cache.table.num_slots, cache.page_size) if watches else None

    def reset(self, cache: PrefixCache) -> None:
        """Advise a cache that is empty: another, or this one after a flush."""
        self._cache = cache
        self.planner.reset(cache)
        self._turns.reset(cache)
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
        self._histories.hold(history_of(request.owner, hints))
        if hints.workflow_id is not None:
            key = (request.owner, hints.workflow_id)
            graph, is_known = self._graph_of(request.owner, hints)
            run = self.progress.run(key, graph, now)
            if not is_known:
                status = HintStatus.UNKNOWN_GRAPH
            if hints.agent_id is not None:
                follows = run.state.graph if run.state is not None else None
                if follows is not None and hints.agent_id not in follows.nodes_of:
                    status = HintStatus.CLIPPED
                self.progress.start(run, hints.agent_id)
            self._runs[request.id] = run
            self._turns.arrive(run, hints.agent_id, request.priority, now)
        if hints.agent_id is not None:
            agent, page = (request.owner, hints.agent_id), self._cache.page_size
            self._fixed[request.id] = self._agents.call(agent, request, page, now)
        self._tell()
        return status

    def may_begin(self, request: Request) -> bool:
        """Whether a request need not wait for its run's turn."""
        run = self._runs.get(request.id)
        return run is None or self._turns.may_begin(request, run)

    @property
    def num_held_back(self) -> int:
        """Runs whose requests wait until others have had their turn."""
        return self._turns.num_held_back

    def check_integrity(self) -> None:
        """Raise IntegrityError where counts are wrong."""
        self._turns.check_integrity()

    def computed(self, request: Request, now: float) -> None:
        """A request's prompt is in the cache."""
        hints = request.hints
        num_fixed = self._fixed.pop(request.id, 0)
        if self._watch is not None:
            is_led = hints is not None and hints.agent_id is not None
            if self._watch.read(request, is_led=is_led):
                self._trust_anew()
        if hints is None or hints.agent_id is None or hints.reuse is Reuse.DISCARD:
            return
        agent = (request.owner, hints.agent_id)
        self._turns.computed(request, ("agent", *agent), history_of(request.owner, hints))
        prefix = request.tokens[: min(num_fixed, request.num_prompt)]
        self._turns.reads(("agent", *agent), request, len(prefix))
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
            # Whoever said nothing may come back, as in any chat: by recency, after all that is
            # known to be read and before what is known not to be.
            owner = ("untold", request.id)
            steps = self._histories.keep(owner, None, None, now + HISTORY_TTL_S)
            self._anchor(owner, request, _written(request), steps)
            return
        run = self._runs.pop(request.id, None)
        if run is not None:
            self._turns.finish(run, now)  # whatever else its hints say
        agent = hints.agent_id
        if agent is not None and is_done and request.first_scheduled_s is not None:
            self.planner.note_call(now - request.first_scheduled_s)
        if run is not None and agent is not None:
            chances = hints.next_agents.items()
            said = {name: LIKELIHOOD_SPREAD * (1.0 - chance) for name, chance in chances}
            said.update(hints.steps_to_execution)
            self.progress.finish(run, agent, is_done=is_done, said=said)
            self.progress.touch(run, now)
        self._note_history(request, hints, run, now)
        if hints.session_final and run is not None and hints.session_id is None:
            self._end_run(run)
        self._turns.decide(now)
        self._tell()

    def expire(self, now: float) -> None:
        """Forget runs, conversations and agents of which nothing has been heard for long."""
        if now - self._expired_s < EXPIRE_EVERY_S:
            return
        self._expired_s = now
        self.progress.expire(now)
        self._histories.expire(now)
        self._agents.expire(now)
        self._turns.decide(now)
        self._tell()

    def _graph_of(self, client: str, hints: Hints) -> tuple[Graph | None, bool]:
        if hints.graph is not None:
            return hints.graph, True
        if hints.graph_id is None:
            return None, True
        graph = self._graphs.get((client, hints.graph_id))
        return graph, graph is not None

    def _note_history(self, request: Request, hints: Hints, run: Run | None, now: float) -> None:
        """Keep what a conversation will be continued from, or let it go."""
        owner = history_of(request.owner, hints)
        is_over = hints.session_final or hints.reuse is Reuse.DISCARD
        if is_over or (hints.session_id is None and hints.reuse is not Reuse.KEEP):
            self._histories.forget(owner)
            return
        ttl_s = HISTORY_TTL_S if hints.ttl_s is None else hints.ttl_s
        steps = self._histories.keep(owner, run, hints.agent_id, now + ttl_s)
        if run is not None and hints.agent_id is not None:
            self._turns.join(run, owner)
        written = _written(request)
        if len(written):  # else it never ran, and the history is as it was
            self._turns.reads(owner, request, len(written))
            self._anchor(owner, request, written, steps)

    def _end_run(self, run: Run) -> None:
        """A run and the conversations of its agents are over."""
        self._histories.end(run)
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

    def _let_go(self, owner: Hashable, run: Run | None = None) -> None:
        """An owner, of this run, reads nothing again."""
        self._cache.unanchor(owner)
        self._turns.forget(owner, run)

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

    def _trust_anew(self) -> None:
        """Graphs are believed no longer, or again."""
        for agent in self._agents:
            self._cache.set_steps(("agent", *agent), self._steps(agent))


def _written(request: Request) -> np.ndarray:
    """Tokens i32[n] whose KV has been computed."""
    return request.tokens[: min(request.num_computed, request.num_known)]
