"""Tells the cache who will read what again and how soon, from what callers say and do.

    hints of requests ──▶ Progress (runs, steps) ──▶ anchors of the cache ──▶ eviction
                            ▲                             │
                            └── Turns (which runs wait)   └──▶ Prefetcher ──▶ moves

Knows nobody's tokens and nobody's device: it reads requests as they begin and end, and tells the
cache. Everything here is advice made of advice: wrong guesses cost hits, never tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.cache.reuse_tracker import LIKELIHOOD_SPREAD, UNKNOWN_STEPS
from kvflow_jax.control.admission.admission_gate import AdmissionGate
from kvflow_jax.control.agent_prefixes import AgentPrefixes
from kvflow_jax.control.prefetcher import Prefetcher, ShouldLoad
from kvflow_jax.control.run_tracker import AgentKey, Run, RunTracker
from kvflow_jax.control.session_store import SessionStore, history_of
from kvflow_jax.control.shadow_lru import LruFallback
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
        should_load: see ``Prefetcher``.
        watches: whether recency takes over for clients whose graphs mislead, and runs of which
            nothing is heard count as far.
        compute_s, decode_s: see ``AdmissionControl``; given, runs may be held back.
    """

    def __init__(
        self,
        cache: PrefixCache,
        *,
        prefetches: bool,
        backs_up_early: bool,
        keeps_everything: bool,
        should_load: ShouldLoad | None = None,
        watches: bool = False,
        compute_s: Callable[[int], float] | None = None,
        decode_s: Callable[[], float] | None = None,
    ) -> None:
        self.run_tracker = RunTracker(notes_quiet=watches)
        self.prefetcher = Prefetcher(cache, prefetches=prefetches, should_load=should_load)
        self._backs_up_early = backs_up_early
        self._keeps_everything = keeps_everything
        self._graphs: OrderedDict[tuple[str, str], Graph] = OrderedDict()
        self._agent_prefixes = AgentPrefixes(lambda agent: self._release_reader(("agent", *agent)))
        self._sessions = SessionStore(self.run_tracker, self._release_reader)
        self._gate = AdmissionGate(cache, self.run_tracker, compute_s, decode_s)
        self._runs: dict[int, Run] = {}  # of requests in progress
        self._fixed: dict[int, int] = {}  # tokens of their fixed prefixes
        self._expired_s = 0.0
        self._cache = cache
        self._lru_fallback = (
            LruFallback(cache.table.num_pages, cache.page_size) if watches else None
        )

    def reset(self, cache: PrefixCache) -> None:
        """Advise a cache that is empty: another, or this one after a flush."""
        self._cache = cache
        self.prefetcher.reset(cache)
        self._gate.reset(cache)
        if self._lru_fallback is not None:
            self._lru_fallback.reset()

    # Graphs and runs, as clients tell of them.

    def register(self, tenant: str, graph_id: str, graph: Graph) -> None:
        """Keep a workflow under a name for the client's runs."""
        self._graphs[tenant, graph_id] = graph
        self._graphs.move_to_end((tenant, graph_id))
        while len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)

    def unregister(self, tenant: str, graph_id: str) -> bool:
        """Forget a workflow; False where there is none of this name. Its runs go on."""
        return self._graphs.pop((tenant, graph_id), None) is not None

    def begin_run(
        self, tenant: str, workflow_id: str, graph: Graph | None, graph_id: str | None, now: float
    ) -> HintStatus:
        """Begin a run before its first request."""
        registered = self._graphs.get((tenant, graph_id)) if graph_id is not None else None
        self.run_tracker.run((tenant, workflow_id), graph or registered, now)
        self._publish_steps()
        is_known = graph_id is None or registered is not None or graph is not None
        return HintStatus.APPLIED if is_known else HintStatus.UNKNOWN_GRAPH

    def advance(
        self, tenant: str, workflow_id: str, completed: list[str], running: list[str], now: float
    ) -> list[str] | None:
        """Take in progress that a client reports; agents its graph lacks, None: no such run."""
        run = self.run_tracker.find((tenant, workflow_id))
        if run is None:
            return None
        self.run_tracker.touch(run, now)
        unknown = self.run_tracker.advance(run, completed, running)
        self._publish_steps()
        return unknown

    def end_run(self, tenant: str, workflow_id: str) -> bool:
        """A run is over; False where there is none of this name."""
        run = self.run_tracker.find((tenant, workflow_id))
        if run is None:
            return False
        self._end_run(run)
        self._publish_steps()
        return True

    # A request's life.

    def on_request_added(self, request: Request, now: float) -> HintStatus | None:
        """A request was queued; what became of its hints, None where it has none."""
        hints = request.hints
        if hints is None:
            return None
        if hints.is_empty:
            return HintStatus.IGNORED
        status = HintStatus.CLIPPED if hints.is_clipped else HintStatus.APPLIED
        self._sessions.hold(history_of(request.tenant, hints))
        if hints.workflow_id is not None:
            key = (request.tenant, hints.workflow_id)
            graph, is_known = self._graph_of(request.tenant, hints)
            run = self.run_tracker.run(key, graph, now)
            if not is_known:
                status = HintStatus.UNKNOWN_GRAPH
            if hints.agent_id is not None:
                follows = run.state.graph if run.state is not None else None
                if follows is not None and hints.agent_id not in follows.nodes_of:
                    status = HintStatus.CLIPPED
                self.run_tracker.start(run, hints.agent_id)
            self._runs[request.id] = run
            self._gate.arrive(run, hints.agent_id, request.priority, now)
        if hints.agent_id is not None:
            agent, page = (request.tenant, hints.agent_id), self._cache.page_size
            self._fixed[request.id] = self._agent_prefixes.call(agent, request, page, now)
        self._publish_steps()
        return status

    def may_begin(self, request: Request) -> bool:
        """Whether a request need not wait for its run's turn."""
        run = self._runs.get(request.id)
        return run is None or self._gate.may_begin(request, run)

    @property
    def num_throttled(self) -> int:
        """Runs whose requests wait until others have had their turn."""
        return self._gate.num_throttled

    def check_integrity(self) -> None:
        """Raise IntegrityError where counts are wrong."""
        self._gate.check_integrity()

    def on_prefill_done(self, request: Request, now: float) -> None:
        """A request's prompt is in the cache."""
        hints = request.hints
        num_fixed = self._fixed.pop(request.id, 0)
        if self._lru_fallback is not None:
            is_led = hints is not None and hints.agent_id is not None
            if self._lru_fallback.read(request, is_led=is_led):
                self._republish_agents()
        if hints is None or hints.agent_id is None or hints.reuse is Reuse.DISCARD:
            return
        agent = (request.tenant, hints.agent_id)
        self._gate.computed(request, ("agent", *agent), history_of(request.tenant, hints))
        prefix = request.tokens[: min(num_fixed, request.num_prompt)]
        self._gate.reads(("agent", *agent), request, len(prefix))
        self._set_reader(("agent", *agent), request, prefix, self._steps(agent))

    def on_preempted(self, request: Request, num_tokens: int) -> None:
        """A request was set back with ``num_tokens`` computed, which it will soon read again."""
        tokens = request.tokens[: min(num_tokens, request.num_known)]
        if not request.is_finished:
            self._cache.set_reader(("request", request.id), request.root, tokens, 0.0)

    def on_request_finished(self, request: Request, now: float, *, is_done: bool) -> None:
        """A request ended, with an answer or without one; its blocks are still leased."""
        hints = request.hints
        self._fixed.pop(request.id, None)
        self._cache.remove_reader(("request", request.id))
        if self._lru_fallback is not None:
            self._lru_fallback.write(request)
        if self._keeps_everything and self._backs_up_early and request.lease is not None:
            num_indexed = request.lease.num_indexed
            if num_indexed:
                self.prefetcher.offload_later(int(request.lease.blocks[num_indexed - 1]))
        if hints is None or hints.is_empty:
            # Whoever overrides nothing may come back, as in any chat: by recency, after all that is
            # known to be read and before what is known not to be.
            owner = ("untold", request.id)
            steps = self._sessions.keep(owner, None, None, now + HISTORY_TTL_S)
            self._set_reader(owner, request, _written(request), steps)
            return
        run = self._runs.pop(request.id, None)
        if run is not None:
            self._gate.finish(run, now)  # whatever else its hints say
        agent = hints.agent_id
        if agent is not None and is_done and request.first_scheduled_s is not None:
            self.prefetcher.note_call(now - request.first_scheduled_s)
        if run is not None and agent is not None:
            chances = hints.next_agents.items()
            overrides = {name: LIKELIHOOD_SPREAD * (1.0 - chance) for name, chance in chances}
            overrides.update(hints.steps_to_execution)
            self.run_tracker.finish(run, agent, is_done=is_done, overrides=overrides)
            self.run_tracker.touch(run, now)
        self._note_history(request, hints, run, now)
        if hints.session_final and run is not None and hints.session_id is None:
            self._end_run(run)
        self._gate.decide(now)
        self._publish_steps()

    def expire(self, now: float) -> None:
        """Forget runs, conversations and agents of which nothing has been heard for long."""
        if now - self._expired_s < EXPIRE_EVERY_S:
            return
        self._expired_s = now
        self.run_tracker.expire(now)
        self._sessions.expire(now)
        self._agent_prefixes.expire(now)
        self._gate.decide(now)
        self._publish_steps()

    def _graph_of(self, tenant: str, hints: Hints) -> tuple[Graph | None, bool]:
        if hints.graph is not None:
            return hints.graph, True
        if hints.graph_id is None:
            return None, True
        graph = self._graphs.get((tenant, hints.graph_id))
        return graph, graph is not None

    def _note_history(self, request: Request, hints: Hints, run: Run | None, now: float) -> None:
        """Keep what a conversation will be continued from, or let it go."""
        owner = history_of(request.tenant, hints)
        is_over = hints.session_final or hints.reuse is Reuse.DISCARD
        if is_over or (hints.session_id is None and hints.reuse is not Reuse.KEEP):
            self._sessions.forget(owner)
            return
        ttl_s = HISTORY_TTL_S if hints.ttl_s is None else hints.ttl_s
        steps = self._sessions.keep(owner, run, hints.agent_id, now + ttl_s)
        if run is not None and hints.agent_id is not None:
            self._gate.join(run, owner)
        written = _written(request)
        if len(written):  # else it never ran, and the history is as it was
            self._gate.reads(owner, request, len(written))
            self._set_reader(owner, request, written, steps)

    def _end_run(self, run: Run) -> None:
        """A run and the conversations of its agents are over."""
        self._sessions.end(run)
        if self.run_tracker.find(run.key) is run:  # not another of its name
            self.run_tracker.end(run.key)

    def _set_reader(
        self, owner: Hashable, request: Request, tokens: np.ndarray, steps: float
    ) -> None:
        if not self._cache.set_reader(owner, request.root, tokens, steps):
            return
        if self._backs_up_early and not self._keeps_everything:
            head = self._cache.reuse_tracker.node_of(owner)
            end = None if head is None else self._cache.end_of(head)
            if end is not None:
                self.prefetcher.offload_later(end)

    def _release_reader(self, owner: Hashable, run: Run | None = None) -> None:
        """An owner, of this run, reads nothing again."""
        self._cache.remove_reader(owner)
        self._gate.forget(owner, run)

    def _publish_steps(self) -> None:
        """Pass on to the cache whose steps have changed."""
        changes = self.run_tracker.changes
        for owner, steps in changes.items():
            match owner:
                case ("agent", str(tenant), str(agent)):
                    steps = self._steps((tenant, agent))
            self._cache.set_steps(owner, steps)
        changes.clear()

    def _steps(self, agent: AgentKey) -> float:
        """Steps of an agent, as far as its client's graphs are to be believed."""
        if self._lru_fallback is not None and self._lru_fallback.falls_back_to_lru(agent[0]):
            return UNKNOWN_STEPS
        return self.run_tracker.steps(agent)

    def _republish_agents(self) -> None:
        """Graphs are believed no longer, or again."""
        for agent in self._agent_prefixes:
            self._cache.set_steps(("agent", *agent), self._steps(agent))


def _written(request: Request) -> np.ndarray:
    """Tokens i32[n] whose KV has been computed."""
    return request.tokens[: min(request.num_computed, request.num_known)]
