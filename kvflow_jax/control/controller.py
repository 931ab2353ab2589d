"""The controller: derives the readers of each prefix, and their steps, from hints and requests.

    hints of requests ──▶ RunTracker (runs, steps) ──▶ ReuseTracker of the cache ──▶ eviction
                            ▲                             │
                            └── AdmissionGate             └──▶ Prefetcher ──▶ loads, offloads

It computes no tokens and touches no device: it observes requests as they begin and end, and sets
readers and steps of the prefix cache. All of that is advice: a wrong guess costs cache hits, never
tokens.
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
from kvflow_jax.control.session_store import SessionStore, history_reader
from kvflow_jax.control.shadow_lru import LruFallback
from kvflow_jax.requests.request import Request
from kvflow_jax.workflow.hints import Hints, HintStatus, Reuse
from kvflow_jax.workflow.step_graph import Graph

MAX_GRAPHS = 10_000
HISTORY_TTL_S = 600.0  # a conversation without a call for this long is released
EXPIRE_EVERY_S = 1.0


class Controller:
    """The workflow-aware policy of one cache.

    Args:
        prefetches: whether to load prefixes before a request asks for them.
        offloads_early: whether to offload while the link is idle, not only at eviction.
        offloads_everything: whether every cached block is worth a host copy, as in hierarchical
            caches, or only a block with a known reader.
        should_load: see ``Prefetcher``.
        has_lru_fallback: safeguard: whether tenants whose graphs lower the hit rate fall back to
            LRU, see ``LruFallback``.
        demotes_quiet_runs: safeguard: see ``RunTracker``.
        compute_s, decode_s: see ``AdmissionControl``; None for ``compute_s`` switches it off.
    """

    def __init__(
        self,
        cache: PrefixCache,
        *,
        prefetches: bool,
        offloads_early: bool,
        offloads_everything: bool,
        should_load: ShouldLoad | None = None,
        has_lru_fallback: bool = False,
        demotes_quiet_runs: bool = False,
        compute_s: Callable[[int], float] | None = None,
        decode_s: Callable[[], float] | None = None,
    ) -> None:
        self.run_tracker = RunTracker(demotes_quiet_runs=demotes_quiet_runs)
        self.prefetcher = Prefetcher(cache, prefetches=prefetches, should_load=should_load)
        self._offloads_early = offloads_early
        self._offloads_everything = offloads_everything
        self._graphs: OrderedDict[tuple[str, str], Graph] = OrderedDict()
        self._agent_prefixes = AgentPrefixes(lambda agent: self._release_reader(("agent", *agent)))
        self._sessions = SessionStore(self.run_tracker, self._release_reader)
        self._gate = AdmissionGate(cache, self.run_tracker, compute_s, decode_s)
        self._runs: dict[int, Run] = {}  # by id of the requests in progress
        self._num_fixed: dict[int, int] = {}  # tokens of fixed prefixes, by request id
        self._expired_s = 0.0
        self._cache = cache
        self._lru_fallback = (
            LruFallback(cache.table.num_pages, cache.page_size) if has_lru_fallback else None
        )

    def reset(self, cache: PrefixCache) -> None:
        """Start over with an empty cache: another one, or the same after a flush."""
        self._cache = cache
        self.prefetcher.reset(cache)
        self._gate.reset(cache)
        if self._lru_fallback is not None:
            self._lru_fallback.reset()

    # Graphs and runs that callers register and report on.

    def register(self, tenant: str, graph_id: str, graph: Graph) -> None:
        """Register a workflow for the runs of a tenant; replaces one of the same name."""
        self._graphs[tenant, graph_id] = graph
        self._graphs.move_to_end((tenant, graph_id))
        while len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)

    def unregister(self, tenant: str, graph_id: str) -> bool:
        """Forget a workflow, but not its runs; return False if there is none of this name."""
        return self._graphs.pop((tenant, graph_id), None) is not None

    def begin_run(
        self, tenant: str, workflow_id: str, graph: Graph | None, graph_id: str | None, now: float
    ) -> HintStatus:
        """Begin a run before its first request; UNKNOWN_GRAPH if ``graph_id`` is unregistered."""
        registered = self._graphs.get((tenant, graph_id)) if graph_id is not None else None
        self.run_tracker.get_or_begin((tenant, workflow_id), graph or registered, now)
        self._publish_steps()
        is_known = graph_id is None or registered is not None or graph is not None
        return HintStatus.APPLIED if is_known else HintStatus.UNKNOWN_GRAPH

    def advance(
        self, tenant: str, workflow_id: str, completed: list[str], running: list[str], now: float
    ) -> list[str] | None:
        """Apply progress that a caller reports.

        Returns:
            The agents that the graph lacks; None if there is no such run.
        """
        run = self.run_tracker.find((tenant, workflow_id))
        if run is None:
            return None
        self.run_tracker.touch(run, now)
        unknown = self.run_tracker.advance(run, completed, running)
        self._publish_steps()
        return unknown

    def end_run(self, tenant: str, workflow_id: str) -> bool:
        """End a run and its conversations; return False if there is none of this name."""
        run = self.run_tracker.find((tenant, workflow_id))
        if run is None:
            return False
        self._end_run(run)
        self._publish_steps()
        return True

    # The life of a request.

    def on_request_added(self, request: Request, now: float) -> HintStatus | None:
        """Apply the hints of a queued request; return their outcome, None without hints."""
        hints = request.hints
        if hints is None:
            return None
        if hints.is_empty:
            return HintStatus.IGNORED
        status = HintStatus.CLIPPED if hints.is_clipped else HintStatus.APPLIED
        self._sessions.pin(history_reader(request.tenant, hints))
        if hints.workflow_id is not None:
            key = (request.tenant, hints.workflow_id)
            graph, is_known = self._graph_of(request.tenant, hints)
            run = self.run_tracker.get_or_begin(key, graph, now)
            if not is_known:
                status = HintStatus.UNKNOWN_GRAPH
            if hints.agent_id is not None:
                run_graph = run.state.graph if run.state is not None else None
                if run_graph is not None and hints.agent_id not in run_graph.nodes_of:
                    status = HintStatus.CLIPPED
                self.run_tracker.start(run, hints.agent_id)
            self._runs[request.id] = run
            self._gate.on_call_added(run, hints.agent_id, request.priority, now)
        if hints.agent_id is not None:
            agent, page_size = (request.tenant, hints.agent_id), self._cache.page_size
            num_fixed = self._agent_prefixes.note_call(agent, request, page_size, now)
            self._num_fixed[request.id] = num_fixed
        self._publish_steps()
        return status

    def can_admit(self, request: Request) -> bool:
        """Return whether admission control lets a request run."""
        run = self._runs.get(request.id)
        return run is None or self._gate.can_admit(request, run)

    @property
    def num_throttled(self) -> int:
        """Workflow runs throttled by admission control."""
        return self._gate.num_throttled

    def check_integrity(self) -> None:
        """Raise IntegrityError if the counts of admission control are wrong."""
        self._gate.check_integrity()

    def on_prefill_done(self, request: Request, now: float) -> None:
        """Attach the agent of a request to its fixed prefix, now in the cache."""
        hints = request.hints
        num_fixed = self._num_fixed.pop(request.id, 0)
        if self._lru_fallback is not None:
            is_agent_call = hints is not None and hints.agent_id is not None
            if self._lru_fallback.on_prefill_done(request, is_agent_call=is_agent_call):
                self._republish_agents()
        if hints is None or hints.agent_id is None or hints.reuse is Reuse.DISCARD:
            return
        agent = (request.tenant, hints.agent_id)
        history = history_reader(request.tenant, hints)
        self._gate.on_prefill_done(request, ("agent", *agent), history)
        prefix = request.tokens[: min(num_fixed, request.num_prompt)]
        self._gate.set_working_set(("agent", *agent), request, len(prefix))
        self._set_reader(("agent", *agent), request, prefix, self._steps(agent))

    def on_preempted(self, request: Request, num_tokens: int) -> None:
        """Protect the ``num_tokens`` computed tokens of a preempted request, which resumes soon."""
        tokens = request.tokens[: min(num_tokens, request.num_known)]
        if not request.is_finished:
            self._cache.set_reader(("request", request.id), request.root, tokens, 0.0)

    def on_request_finished(self, request: Request, now: float, *, is_done: bool) -> None:
        """Advance the run of a request, and keep its history. Its blocks must still be leased.

        Args:
            is_done: whether it was answered; else it failed or was aborted.
        """
        hints = request.hints
        self._num_fixed.pop(request.id, None)
        self._cache.remove_reader(("request", request.id))
        if self._lru_fallback is not None:
            self._lru_fallback.on_request_finished(request)
        if self._offloads_everything and self._offloads_early and request.lease is not None:
            num_indexed = request.lease.num_indexed
            if num_indexed:
                self.prefetcher.offload_later(int(request.lease.blocks[num_indexed - 1]))
        if hints is None or hints.is_empty:
            # A request without hints may be continued, as in any chat: it is ordered by recency,
            # behind all known readers and before suffixes that are known not to be read.
            reader = ("unhinted", request.id)
            steps = self._sessions.keep(reader, None, None, now + HISTORY_TTL_S)
            self._set_reader(reader, request, _computed_tokens(request), steps)
            return
        run = self._runs.pop(request.id, None)
        if run is not None:
            # First, so that it happens even if one of the hints below cannot be applied.
            self._gate.on_call_finished(run, now)
        agent = hints.agent_id
        if agent is not None and is_done and request.first_scheduled_s is not None:
            self.prefetcher.note_call(now - request.first_scheduled_s)
        if run is not None and agent is not None:
            overrides = {
                name: LIKELIHOOD_SPREAD * (1.0 - probability)
                for name, probability in hints.next_agents.items()
            }
            overrides.update(hints.steps_to_execution)
            self.run_tracker.finish(run, agent, is_done=is_done, overrides=overrides)
            self.run_tracker.touch(run, now)
        self._keep_history(request, hints, run, now)
        if hints.session_final and run is not None and hints.session_id is None:
            self._end_run(run)
        self._gate.update(now)
        self._publish_steps()

    def expire(self, now: float) -> None:
        """Forget the runs, conversations and agents whose times to live have passed."""
        if now - self._expired_s < EXPIRE_EVERY_S:
            return
        self._expired_s = now
        self.run_tracker.expire(now)
        self._sessions.expire(now)
        self._agent_prefixes.expire(now)
        self._gate.update(now)
        self._publish_steps()

    def _graph_of(self, tenant: str, hints: Hints) -> tuple[Graph | None, bool]:
        """Return the graph that hints name, and whether it is known."""
        if hints.graph is not None:
            return hints.graph, True
        if hints.graph_id is None:
            return None, True
        graph = self._graphs.get((tenant, hints.graph_id))
        return graph, graph is not None

    def _keep_history(self, request: Request, hints: Hints, run: Run | None, now: float) -> None:
        """Keep the history that a conversation will continue, or release it if it is over."""
        reader = history_reader(request.tenant, hints)
        is_over = hints.session_final or hints.reuse is Reuse.DISCARD
        if is_over or (hints.session_id is None and hints.reuse is not Reuse.KEEP):
            self._sessions.forget(reader)
            return
        ttl_s = HISTORY_TTL_S if hints.ttl_s is None else hints.ttl_s
        steps = self._sessions.keep(reader, run, hints.agent_id, now + ttl_s)
        if run is not None and hints.agent_id is not None:
            self._gate.add_reader(run, reader)
        tokens = _computed_tokens(request)
        if len(tokens):  # else it never ran, and the history is unchanged
            self._gate.set_working_set(reader, request, len(tokens))
            self._set_reader(reader, request, tokens, steps)

    def _end_run(self, run: Run) -> None:
        self._sessions.end_run(run)
        if self.run_tracker.find(run.key) is run:  # not a later run of the same name
            self.run_tracker.end(run.key)

    def _set_reader(
        self, reader: Hashable, request: Request, tokens: np.ndarray, steps: float
    ) -> None:
        if not self._cache.set_reader(reader, request.root, tokens, steps):
            return
        if self._offloads_early and not self._offloads_everything:
            head = self._cache.reuse_tracker.node_of(reader)
            end = None if head is None else self._cache.last_block_of(head)
            if end is not None:
                self.prefetcher.offload_later(end)

    def _release_reader(self, reader: Hashable, run: Run | None = None) -> None:
        """Forget a reader, which may belong to a run."""
        self._cache.remove_reader(reader)
        self._gate.remove_reader(reader, run)

    def _publish_steps(self) -> None:
        """Set the steps of the readers that have changed in the cache."""
        changes = self.run_tracker.changes
        for reader, steps in changes.items():
            match reader:
                case ("agent", str(tenant), str(agent)):
                    steps = self._steps((tenant, agent))
            self._cache.set_steps(reader, steps)
        changes.clear()

    def _steps(self, agent: AgentKey) -> float:
        """Return the steps of an agent; UNKNOWN_STEPS while its tenant falls back to LRU."""
        if self._lru_fallback is not None and self._lru_fallback.falls_back_to_lru(agent[0]):
            return UNKNOWN_STEPS
        return self.run_tracker.steps(agent)

    def _republish_agents(self) -> None:
        """Set the steps of all agents in the cache, as a tenant's fallback began or ended."""
        for agent in self._agent_prefixes:
            self._cache.set_steps(("agent", *agent), self._steps(agent))


def _computed_tokens(request: Request) -> np.ndarray:
    """Return the tokens, i32[n], whose KV has been computed."""
    return request.tokens[: min(request.num_computed, request.num_known)]
