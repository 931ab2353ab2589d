"""The controller: derives the readers of each prefix, and its next read, from hints and requests.

    hints of requests ──▶ RunTracker (runs, steps) ──▶ CacheReaders ──▶ eviction
                            ▲                             │
                            └── AdmissionGate             └──▶ Prefetcher ──▶ loads, offloads

It computes no tokens and touches no device: it observes requests as they begin and end, and sets
readers of the prefix cache. All of that is advice: a wrong guess costs cache hits, never tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from kvflow_jax.bounds.tenant_lru import Usage
from kvflow_jax.cache.next_read import RUNNING, NextRead, scheduled
from kvflow_jax.cache.prefix_cache import PrefixCache
from kvflow_jax.control.admission.admission_gate import AdmissionGate
from kvflow_jax.control.agent_prefixes import AgentPrefixes, FixedPrefix
from kvflow_jax.control.cache_readers import CacheReaders
from kvflow_jax.control.call_order import CallOrder
from kvflow_jax.control.hint_outcome import outcome_of, priority_outcome
from kvflow_jax.control.hints_as_advice import hints_as_advice
from kvflow_jax.control.learned_order import LearnedOrder
from kvflow_jax.control.prefetcher import Prefetcher, ShouldLoad
from kvflow_jax.control.readers import AgentReader, PreemptedReader, Reader, RunKey, UnhintedReader
from kvflow_jax.control.recognition.tenant_calls import CallingRun
from kvflow_jax.control.registered_graphs import RegisteredGraphs
from kvflow_jax.control.run_tracker import Run, RunTracker
from kvflow_jax.control.session_store import SessionStore, history_reader
from kvflow_jax.control.session_tree import EndedBy, SessionTree
from kvflow_jax.control.shadow_lru import LruFallback
from kvflow_jax.requests.request import Request
from kvflow_jax.reuse.predictors import NONE
from kvflow_jax.workflow.hints import Hints, HintStatus, Reuse
from kvflow_jax.workflow.step_graph import Graph

HISTORY_TTL_S = 600.0  # a conversation without a call for this long is released
EXPIRE_EVERY_S = 1.0
_NO_PREFIX = FixedPrefix(0, None)


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
        uses_hints: whether eviction, offload, prefetch or admission depend on hints; if not, the
            outcome that requests report is that theirs were ignored.
        learned_order: what is learned of the order of agents; None: nothing is. Callers are
            recognised where requests do not name them if it learns.
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
        uses_hints: bool = True,
        learned_order: LearnedOrder | None = None,
        compute_s: Callable[[int], float] | None = None,
        decode_s: Callable[[], float] | None = None,
    ) -> None:
        self.graphs = RegisteredGraphs()
        self.learned_order = learned_order or LearnedOrder(NONE)
        self._call_order: CallOrder | None = None
        if self.learned_order.learns:
            self._call_order = CallOrder(cache.page_size, self.learned_order)
        self._calling_runs: dict[int, CallingRun] = {}  # by id of the requests in progress
        self.run_tracker = RunTracker(demotes_quiet_runs=demotes_quiet_runs)
        self.prefetcher = Prefetcher(cache, prefetches=prefetches, should_load=should_load)
        self._uses_hints = uses_hints
        self._offloads_early = offloads_early
        self._offloads_everything = offloads_everything
        self._lru_fallback = (
            LruFallback(cache.num_pages, cache.page_size) if has_lru_fallback else None
        )
        offloads_prefixes = offloads_early and not offloads_everything
        self._agent_prefixes = AgentPrefixes(self._release_reader)
        self._readers = CacheReaders(
            cache,
            self._lru_fallback,
            self._agent_prefixes,
            self.run_tracker.known_read_of,
            self.prefetcher.offload_later if offloads_prefixes else None,
        )
        self._sessions = SessionStore(self.run_tracker, self._release_reader)
        self._session_tree = SessionTree()
        self._num_ended: Counter[EndedBy] = Counter()
        self._gate = AdmissionGate(cache, self.run_tracker, compute_s, decode_s)
        self._runs: dict[int, Run] = {}  # by id of the requests in progress
        self._fixed: dict[int, FixedPrefix] = {}  # by id of the requests in progress
        self._expired_s = 0.0
        self._cache = cache

    def reset(self, cache: PrefixCache) -> None:
        """Start over with an empty cache: another one, or the same after a flush."""
        self._cache = cache
        self._readers.reset(cache)
        self.prefetcher.reset(cache)
        self._gate.reset(cache)
        self._publish_changes()
        if self._lru_fallback is not None:
            self._lru_fallback.reset()

    # Runs that callers report on.

    def begin_run(
        self, tenant: str, workflow_id: str, graph: Graph | None, graph_id: str | None, now: float
    ) -> HintStatus:
        """Begin a run before its first request; UNKNOWN_GRAPH if ``graph_id`` is unregistered."""
        named = self.graphs.find(tenant, graph_id)
        self.run_tracker.get_or_begin(RunKey(tenant, workflow_id), graph or named.graph, now)
        self._publish_changes()
        is_known = named.is_known or graph is not None
        return HintStatus.APPLIED if is_known else HintStatus.UNKNOWN_GRAPH

    def advance_run(
        self, tenant: str, workflow_id: str, completed: list[str], running: list[str], now: float
    ) -> list[str] | None:
        """Apply progress that a caller reports.

        Returns:
            The agents that the graph lacks; None if there is no such run.
        """
        run = self.run_tracker.find(RunKey(tenant, workflow_id))
        if run is None:
            return None
        self.run_tracker.touch(run, now)
        unknown = self.run_tracker.advance(run, completed, running)
        self._publish_changes()
        return unknown

    def end_run(self, tenant: str, workflow_id: str, *, keeps_sessions: bool = False) -> bool:
        """End a run and its conversations; return False if there is none of this name.

        Args:
            keeps_sessions: see ``SessionStore.end_run``.
        """
        run = self.run_tracker.find(RunKey(tenant, workflow_id))
        if run is None:
            return False
        self._end_run(run, keeps_sessions=keeps_sessions)
        self._publish_changes()
        return True

    # The life of a request.

    def on_request_added(self, request: Request, now: float) -> HintStatus | None:
        """Apply the hints of a queued request; return their outcome, None without hints."""
        given = request.hints
        # Hints that were given hold without what would be recognised.
        with hints_as_advice(request):
            self._recognise(request, now)
        hints = request.hints
        if hints is None:
            return None
        if hints.is_empty:
            return priority_outcome(hints)
        try:
            status = self._apply_hints(request, hints, given or Hints(), now)
        finally:
            self._publish_changes()
        if given is None:
            return None
        if given.is_empty:
            return priority_outcome(given)
        if self._uses_hints or status is HintStatus.UNKNOWN_GRAPH:
            return status
        return HintStatus.IGNORED if given.priority is None else HintStatus.CLIPPED

    def can_admit(self, request: Request) -> bool:
        """Return whether admission control lets a request run."""
        run = self._runs.get(request.id)
        return run is None or self._gate.can_admit(request, run)

    @property
    def tenant_state(self) -> dict[str, Usage]:
        """What is kept for tenants, by its kind."""
        return {
            "runs": self.run_tracker.usage,
            "histories": self._sessions.usage,
            "sessions": self._session_tree.usage,
            "agents": self._agent_prefixes.usage,
            "graphs": self.graphs.usage,
            "learned_order": self.learned_order.usage,
            "callers": Usage() if self._call_order is None else self._call_order.usage,
        }

    @property
    def ended_histories(self) -> dict[str, int]:
        """Histories that were released before their time to live, by ``EndedBy``."""
        return {reason.value: self._num_ended[reason] for reason in EndedBy}

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
        num_fixed, prefix_reader = self._fixed.pop(request.id, _NO_PREFIX)
        if self._lru_fallback is not None:
            is_agent_call = hints is not None and hints.agent_id is not None
            if self._lru_fallback.on_prefill_done(request, is_agent_call=is_agent_call):
                for agent in self._agent_prefixes:
                    self._readers.update_agent(agent)
                self._readers.update(self._sessions.next_reads())
        if hints is None or hints.agent_id is None or hints.reuse is Reuse.DISCARD:
            return
        reader = AgentReader(request.tenant, hints.agent_id)
        history = history_reader(request.tenant, hints)
        self._gate.on_prefill_done(request, reader, history)
        if not self._agent_prefixes.knows(reader):
            return  # forgotten while its prompt was computed
        prefix = request.tokens[: min(num_fixed, request.num_prompt)]
        self._gate.set_working_set(reader, request, len(prefix))
        if prefix_reader is not None:
            self._readers.set_prefix(prefix_reader, request, prefix)

    def on_preempted(self, request: Request, num_tokens: int) -> None:
        """Protect the ``num_tokens`` computed tokens of a preempted request, which resumes soon."""
        tokens = request.tokens[: min(num_tokens, request.num_known)]
        if not request.is_finished:
            reader = PreemptedReader(request.id)
            self._cache.set_reader(reader, request.root, tokens, RUNNING)

    def on_request_finished(self, request: Request, now: float, *, is_done: bool) -> None:
        """Advance the run of a request, and keep its history. Its blocks must still be leased.

        Args:
            is_done: whether it was answered; else it failed or was aborted.
        """
        hints = request.hints
        self._fixed.pop(request.id, None)
        if self._call_order is not None:
            with hints_as_advice(request):
                self._call_order.end_call(request, now, is_done=is_done)
        self._readers.remove(PreemptedReader(request.id))
        if self._lru_fallback is not None:
            self._lru_fallback.on_request_finished(request)
        if self._offloads_everything and self._offloads_early and request.lease is not None:
            end = self._cache.end_of(request.lease)
            if end is not None:
                self.prefetcher.offload_later(end)
        if hints is None or hints.is_empty:
            # A request without hints may be continued, as in any chat.
            self._keep_by_recency(request, now)
            return
        try:
            self._finish_call(request, hints, now, is_done=is_done)
        finally:
            self._calling_runs.pop(request.id, None)
            self._publish_changes()

    def expire(self, now: float) -> None:
        """Forget the runs, conversations and agents whose times to live have passed.

        Called once in each step, as it begins: runs that could not be updated in the last one are
        now.
        """
        self.run_tracker.begin_step()
        self.learned_order.save_if_due(now)
        if now - self._expired_s < EXPIRE_EVERY_S:
            self._publish_changes()
            return
        self._expired_s = now
        self.run_tracker.expire(now)
        self._sessions.expire(now)
        self._agent_prefixes.expire(now)
        self._gate.update(now)
        self._publish_changes()

    def _recognise(self, request: Request, now: float) -> None:
        """Add to the hints of a request what is recognised of its caller."""
        if self._call_order is None:
            return
        caller = self._call_order.begin_call(request, now)
        self._calling_runs[request.id] = caller.run
        request.hints = caller.hints
        if not self._falls_back_to_lru(request.tenant):
            for reader in caller.ended:
                self._num_ended[EndedBy.USE] += self._sessions.forget(reader)

    def _apply_hints(self, request: Request, hints: Hints, given: Hints, now: float) -> HintStatus:
        """Start the call of a request in its run, and note its agent's fixed prefix.

        Args:
            hints: with what was recognised.
            given: without it. A graph belongs to a run that its caller names.
        """
        named, run_graph = self.graphs.find_hinted(request.tenant, hints), None
        for reader, reason in self._session_tree.begin_call(request.tenant, hints):
            self._num_ended[reason] += self._sessions.forget(reader)
        self._sessions.pin(history_reader(request.tenant, hints))
        key = None if hints.workflow_id is None else RunKey(request.tenant, hints.workflow_id)
        prefix = None
        if hints.agent_id is not None:
            agent, page_size = AgentReader(request.tenant, hints.agent_id), self._cache.page_size
            fixed = self._agent_prefixes.note_call(agent, request, key, page_size, now)
            self._fixed[request.id], prefix = fixed, fixed.reader
        if key is not None:
            graph = named.graph if given.workflow_id is not None else None
            run = self.run_tracker.get_or_begin(key, graph, now)
            run_graph = run.state.graph if run.state is not None else None
            if hints.agent_id is not None:
                self.run_tracker.start_call(
                    run,
                    hints.agent_id,
                    prefix,
                    forecast=self._forecast(request, run),
                    prefetches=hints.prefetch is not False,
                )
            self._runs[request.id] = run
            self._gate.on_call_added(run, hints.agent_id, request, now)
        return outcome_of(
            given,
            named,
            run_graph,
            follows_order=not self._falls_back_to_lru(request.tenant),
            prefetches=self.prefetcher.prefetches,
        )

    def _finish_call(self, request: Request, hints: Hints, now: float, *, is_done: bool) -> None:
        """End the call of a request in its run, and keep what its conversation will read."""
        run = self._runs.pop(request.id, None)
        if run is not None:
            # First, so that it happens even if one of the hints below cannot be applied.
            self._gate.on_call_finished(run, now)
        agent = hints.agent_id
        if agent is not None and is_done and request.first_scheduled_s is not None:
            self.prefetcher.note_call_time(now - request.first_scheduled_s)
        if run is not None and agent is not None:
            steps, chances = hints.steps_to_execution, hints.next_agents
            overrides = {
                name: scheduled(steps.get(name, 0.0), chance=chances.get(name, 1.0))
                for name in (*chances, *steps)
            }
            self.run_tracker.finish_call(
                run,
                agent,
                is_done=is_done,
                overrides=overrides,
                forecast=self._forecast(request, run),
            )
            self.run_tracker.touch(run, now)
        if self._session_tree.end_call(request.tenant, hints):
            self._num_ended[EndedBy.LATE_CALL] += 1
        else:
            self._keep_history(request, hints, run, now)
        is_last = hints.session_final and hints.session_id is None
        if is_last and run is not None and not run.key.is_recognised:  # that may hold others' calls
            self._end_run(run)
        self._gate.update(now)

    def _keep_history(self, request: Request, hints: Hints, run: Run | None, now: float) -> None:
        """Keep the history that a conversation will continue, or release it if it is over."""
        reader = history_reader(request.tenant, hints)
        is_over = hints.session_final or hints.reuse is Reuse.DISCARD
        if is_over or (hints.session_id is None and hints.reuse is not Reuse.KEEP):
            self._sessions.forget(reader)
            if not is_over and self._is_left_to_lru(request):
                self._keep_by_recency(request, now)
            return
        ttl_s = HISTORY_TTL_S if hints.ttl_s is None else hints.ttl_s
        tokens = _computed_tokens(request)
        num_blocks = len(tokens) // self._cache.page_size
        next_read = self._sessions.keep(reader, run, hints.agent_id, now + ttl_s, num_blocks)
        if run is not None and hints.agent_id is not None:
            self._gate.add_reader(run, reader)
        if len(tokens):  # else it never ran, and the history is unchanged
            self._gate.set_working_set(reader, request, len(tokens))
            self._readers.set(reader, request, tokens, next_read)

    def _keep_by_recency(self, request: Request, now: float) -> None:
        """Keep a sequence behind all known readers, before suffixes that will not be read."""
        reader = UnhintedReader(request.tenant, request.id)
        next_read = self._sessions.keep(reader, None, None, now + HISTORY_TTL_S)
        self._readers.set(reader, request, _computed_tokens(request), next_read)

    def _is_left_to_lru(self, request: Request) -> bool:
        """Return whether what was recognised of a request decides nothing, as LRU does."""
        run = self._calling_runs.get(request.id)
        is_recognised = run is not None and run.is_recognised
        return is_recognised and self._falls_back_to_lru(request.tenant)

    def _falls_back_to_lru(self, tenant: str) -> bool:
        return self._lru_fallback is not None and self._lru_fallback.falls_back_to_lru(tenant)

    def _forecast(self, request: Request, run: Run) -> Mapping[str, NextRead]:
        """Return the next reads in a run by the learned order; none if its graph tells them."""
        calling_run = self._calling_runs.get(request.id)
        reads: Mapping[str, NextRead] = {}
        # Without a forecast, calls begin and end all the same.
        with hints_as_advice(request):
            if self._call_order is not None and calling_run is not None and run.state is None:
                reads = self._call_order.forecast(request.tenant, calling_run)
        return reads

    def _end_run(self, run: Run, *, keeps_sessions: bool = False) -> None:
        self._sessions.end_run(run, keeps_sessions=keeps_sessions)
        if self.run_tracker.find(run.key) is run:  # not a later run of the same name
            self.run_tracker.end(run.key)

    def _release_reader(self, reader: Reader, run: Run | None = None) -> None:
        """Forget a reader, which may belong to a run."""
        self._readers.remove(reader)
        self._gate.remove_reader(reader, run)

    def _publish_changes(self) -> None:
        """Tell the cache and the gate what has changed in the runs."""
        try:
            self._readers.update(self.run_tracker.drain_changes())
        finally:
            self._gate.drop_ended_runs()


def _computed_tokens(request: Request) -> np.ndarray:
    """Return the tokens, i32[n], whose KV has been computed."""
    return request.tokens[: min(request.num_computed, request.num_known)]
