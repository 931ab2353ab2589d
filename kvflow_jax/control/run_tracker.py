"""The progress of all workflow runs, and the next reads of prefixes that follow from it."""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from kvflow_jax.bounds.tenant_lru import TenantLru, Usage
from kvflow_jax.bounds.tenant_queue import TenantQueue
from kvflow_jax.cache import next_read
from kvflow_jax.cache.min_multiset import MinMultiset
from kvflow_jax.cache.next_read import NextRead
from kvflow_jax.control.idle_time_quantile import IdleTimeQuantile
from kvflow_jax.control.readers import (
    AgentReader,
    HistoryReader,
    PrefixReader,
    Reader,
    RunKey,
)
from kvflow_jax.errors import IntegrityError
from kvflow_jax.workflow.step_graph import NEVER, Graph, RunState

MAX_BYTES = 32 << 20  # of one tenant's runs, with their graphs
# Work on the next reads of agents in one step of the engine: about 5 ms. Runs that move beyond that
# are updated in later steps, in which tenants take turns.
MAX_WORK = 25_000
_AGENT_WORK = 16  # an agent's next read costs as much as so many nodes and edges of a graph
MAX_EXPIRED = 1000  # runs that end in one step because they were abandoned
# Of a run beside its state, and of each of its agents, whose reads are also those of the cache and
# of admission control.
_RUN_BYTES, _AGENT_BYTES = 1200, 780
_PREFIX_BYTES = 600  # of a prefix that an agent has read in a run, beside the agent's name
RUN_TTL_S = 600.0  # a run without calls or reports for this long is abandoned
# A run is quiet once it has idled for this factor of a long idle time, and for MIN_QUIET_S.
QUIET_FACTOR, MIN_QUIET_S = 8.0, 10.0
# Number of branches of a run, the most likely ones at the same number of steps, whose prefixes are
# prefetched. A branch that is due now takes no place of one that is due in the next step.
MAX_BRANCHES = 4
MAX_PREFIXES_OF_RUN = 4  # of one agent in one run
MAX_AGENTS_OF_RUN = 1000  # whose prefixes are known, those that were called last


@dataclass(slots=True)
class Run:
    """One execution of a workflow.

    Attributes:
        state: progress in its graph; None without one.
        overrides: agent -> next read as its caller gave it; it precedes that of the graph.
        forecast: agent -> next read by the learned order of calls, of agents without another.
        calls: number of calls in progress of each agent.
        throttled: number of those that admission control makes wait.
        prefixes: agent -> the fixed prefixes that it has read last in this run, the last one last;
            any of them may be read by its next call. The agent called last comes last.
        prefix_bytes: estimate of the memory of these prefixes, in bytes.
        agent_reads: agent -> its next read of its prefix in this run.
        counted: agent -> the readers for which the tracker counts that read.
        readers: agent -> readers of its conversations, which are read when the agent runs.
        skips_prefetch: whether its last call asked to load nothing ahead.
        is_throttled: whether admission control throttles the run.
        is_quiet: whether it idles for much longer than runs do; counts as if it were throttled.
        is_stale: whether it has moved since ``agent_reads`` was computed.
    """

    key: RunKey
    state: RunState | None
    last_seen_s: float
    overrides: dict[str, NextRead] = field(default_factory=dict)
    forecast: Mapping[str, NextRead] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    throttled: Counter[str] = field(default_factory=Counter)
    prefixes: dict[str, tuple[PrefixReader, ...]] = field(default_factory=dict)
    prefix_bytes: int = 0
    agent_reads: dict[str, NextRead] = field(default_factory=dict)
    counted: dict[str, tuple[AgentReader | PrefixReader, ...]] = field(default_factory=dict)
    readers: dict[str, dict[HistoryReader, None]] = field(default_factory=dict)
    skips_prefetch: bool = False
    is_throttled: bool = False
    is_quiet: bool = False
    is_stale: bool = False

    def note_prefix(self, agent: str, prefix: PrefixReader) -> None:
        """Record the fixed prefix that an agent reads. Callers choose the names of agents."""
        others = [other for other in self._pop_prefixes(agent) if other != prefix]
        read = self.prefixes[agent] = (*others, prefix)[-MAX_PREFIXES_OF_RUN:]
        self.prefix_bytes += len(read) * _prefix_bytes(agent)
        if len(self.prefixes) > MAX_AGENTS_OF_RUN:
            self._pop_prefixes(next(iter(self.prefixes)))

    def _pop_prefixes(self, agent: str) -> tuple[PrefixReader, ...]:
        read = self.prefixes.pop(agent, ())
        self.prefix_bytes -= len(read) * _prefix_bytes(agent)
        return read

    @property
    def num_bytes(self) -> int:
        """Estimate of its memory in bytes, without its graph and its conversations."""
        # Those that a stale run will have count, too.
        num_in_graph = 0 if self.state is None else len(self.state.graph.nodes_of)
        num_known = max(len(self.overrides), len(self.forecast), num_in_graph)
        num_agents = max(len(self.agent_reads), num_known)
        num_bytes = _RUN_BYTES + sum(map(sys.getsizeof, self.key)) + self.prefix_bytes
        num_bytes += _AGENT_BYTES * num_agents + sum(map(sys.getsizeof, self.overrides))
        return num_bytes if self.state is None else num_bytes + self.state.num_bytes

    @property
    def work(self) -> int:
        """What an update of ``agent_reads`` costs, in visits of nodes and edges."""
        num_agents = len(self.agent_reads) + len(self.overrides) + len(self.forecast)
        if self.state is None:
            return _AGENT_WORK * num_agents
        graph = self.state.graph
        return graph.num_parts + _AGENT_WORK * (num_agents + len(graph.nodes_of))


class RunTracker:
    """All runs, and for each agent the soonest read of its prefix over the runs.

    Args:
        demotes_quiet_runs: whether quiet runs count as throttled. An abandoned run is not reported
            as such, and its prefixes must not displace those of live runs.
        max_bytes: of one tenant's runs; those without activity for longest are ended first.
    """

    def __init__(self, *, demotes_quiet_runs: bool = False, max_bytes: int = MAX_BYTES) -> None:
        self._changes: dict[Reader, NextRead] = {}  # not drained yet
        self._ended: list[RunKey] = []  # not drained yet
        self._runs: TenantLru[RunKey, Run] = TenantLru(max_bytes, lambda key, run: self._close(run))
        self._num_named = 0
        self._graph_users: Counter[tuple[str, Graph]] = Counter()  # runs, by tenant and graph
        self._stale: TenantQueue[Run] = TenantQueue()  # those that ``is_stale``, and ended ones
        self._work_left = MAX_WORK  # of this step
        self._reads: dict[AgentReader | PrefixReader, MinMultiset[NextRead]] = {}
        self._demotes_quiet_runs = demotes_quiet_runs
        # Start of the idle time of each run without calls, the longest idle first.
        self._idle_since_s: OrderedDict[RunKey, float] = OrderedDict()
        self._idle_times = IdleTimeQuantile()

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def num_named(self) -> int:
        """Runs that clients have named; the others were recognised."""
        return self._num_named

    @property
    def usage(self) -> Usage:
        return self._runs.usage

    def begin_step(self) -> None:
        """Update the runs that have moved, as far as the work of one step goes."""
        self._work_left = MAX_WORK
        while self._work_left > 0 and len(self._stale):
            run = self._stale.pop()
            if run.is_stale:
                self._refresh(run)

    def get_or_begin(self, key: RunKey, graph: Graph | None, now: float) -> Run:
        """Return the run of this key; begin one if there is none or it is over.

        A graph given after the run began counts the calls in progress.
        """
        run = self.find(key)
        if run is None or (run.state is not None and run.state.is_over):
            if run is not None:
                self.end(key)
            run = Run(key, None, now)
            self._runs.put(key.tenant, key, run, run.num_bytes)
            self._num_named += not key.is_recognised
            if graph is not None:
                self._set_graph(run, graph)
            self._update(run)
        elif run.state is None and graph is not None:
            state = self._set_graph(run, graph)
            for agent, num_calls in run.calls.items():
                for _ in range(num_calls):
                    state.start(agent)
            self._update(run)
        self.touch(run, now)
        return run

    def touch(self, run: Run, now: float) -> None:
        """Record activity of a run: it is neither abandoned nor quiet."""
        run.last_seen_s = now
        if self.find(run.key) is not run:
            return
        self._runs.use(run.key.tenant, run.key)
        idle_since_s = self._idle_since_s.pop(run.key, None)
        if idle_since_s is not None:
            self._idle_times.observe(now - idle_since_s)
        if not run.calls:
            self._idle_since_s[run.key] = now
        if run.is_quiet:
            run.is_quiet = False
            self._update(run)

    def find(self, key: RunKey) -> Run | None:
        """Return the run of this key, None if there is none."""
        return self._runs.get(key.tenant, key)

    def known_read_of(self, reader: AgentReader | PrefixReader) -> NextRead | None:
        """Return the soonest read of a prefix over the runs that have read it; None without one.

        For an agent: over the runs in which it has read no prefix yet.
        """
        minima = self._reads.get(reader)
        return minima.minimum if minima is not None else None

    def next_read_of(self, reader: AgentReader | PrefixReader) -> NextRead:
        """Return ``known_read_of``; UNKNOWN without a run."""
        return self.known_read_of(reader) or next_read.UNKNOWN

    def drain_changes(self) -> dict[Reader, NextRead]:
        """Return the readers whose next read has changed since the last call, with it."""
        changes, self._changes = self._changes, {}
        return changes

    def drain_ended(self) -> list[RunKey]:
        """Return the runs that have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def check_drained(self) -> None:
        """Raise IntegrityError if changes or ended runs were not drained."""
        if self._changes or self._ended:
            raise IntegrityError("changes of runs were not drained")

    def start_call(
        self,
        run: Run,
        agent: str,
        prefix: PrefixReader | None = None,
        *,
        forecast: Mapping[str, NextRead] = MappingProxyType({}),
        prefetches: bool = True,
    ) -> None:
        """Record the start of an agent's call.

        Args:
            prefix: the fixed prefix that it reads.
            forecast: agent -> next read by the learned order.
            prefetches: whether what the run reads next is loaded ahead, until its next call.
        """
        self._idle_since_s.pop(run.key, None)
        run.calls[agent] += 1
        run.skips_prefetch = not prefetches
        run.overrides.pop(agent, None)
        run.forecast = forecast
        if prefix is not None:
            run.note_prefix(agent, prefix)
        if run.state is not None:
            run.state.start(agent)
        self._update(run)

    def finish_call(
        self,
        run: Run,
        agent: str,
        *,
        is_done: bool,
        overrides: Mapping[str, NextRead],
        forecast: Mapping[str, NextRead] = MappingProxyType({}),
    ) -> None:
        """Record the end of an agent's call.

        Args:
            is_done: whether it was answered; else it was aborted, and may be repeated.
            overrides: agent -> next read, given by the caller; they replace earlier ones.
            forecast: agent -> next read by the learned order.
        """
        run.calls[agent] -= 1
        if run.calls[agent] <= 0:
            del run.calls[agent]
        if run.throttled[agent] > run.calls[agent]:  # a throttled call was aborted
            run.throttled[agent] = run.calls[agent]
        if run.state is not None:
            if is_done:
                run.state.finish(agent)
            else:
                run.state.abandon(agent)
        if self.find(run.key) is not run:
            return  # the run was ended meanwhile, and has no steps any more
        if is_done:
            run.overrides = dict(overrides)
        run.forecast = forecast
        self._update(run)
        if run.state is not None and run.state.is_over:
            self.end(run.key)

    def advance(self, run: Run, completed: Iterable[str], running: Iterable[str]) -> list[str]:
        """Apply progress that a caller reports; return the agents that the graph lacks."""
        unknown = run.state.advance(completed, running) if run.state is not None else []
        self._update(run)
        if run.state is not None and run.state.is_over and not run.calls:
            self.end(run.key)
        return unknown

    def attach_reader(self, run: Run, agent: str, reader: HistoryReader) -> NextRead:
        """Let a conversation be read when an agent of a run runs; return its next read."""
        run.readers.setdefault(agent, {})[reader] = None
        return self.history_read(run, agent)

    def history_read(self, run: Run, agent: str) -> NextRead:
        """Return the next read of a conversation of an agent.

        While the agent runs another conversation, this one is read by its next call at the
        earliest. The learned order does not count: it tells when the agent calls, but of many
        conversations of one role their last use tells better which goes on.
        """
        if agent in run.calls and not run.throttled[agent]:
            next_call = next_read.scheduled(1.0, skips_prefetch=True)
            return next_call.throttled() if run.is_throttled else next_call
        if agent in run.forecast and agent not in run.overrides and agent not in run.calls:
            return next_read.UNKNOWN
        return run.agent_reads.get(agent, next_read.UNKNOWN)

    def detach_reader(self, run: Run, agent: str, reader: HistoryReader) -> None:
        """Undo ``attach_reader``; does nothing for an unknown reader."""
        readers = run.readers.get(agent, {})
        readers.pop(reader, None)
        if not readers:
            run.readers.pop(agent, None)

    def end(self, key: RunKey) -> bool:
        """Forget a run; return False if there is none of this key."""
        run = self._runs.pop(key.tenant, key)
        if run is None:
            return False
        self._close(run)
        return True

    def set_throttled(self, key: RunKey, *, is_throttled: bool) -> None:
        """Record that admission control throttles or resumes a run."""
        run = self.find(key)
        if run is not None and run.is_throttled != is_throttled:
            run.is_throttled = is_throttled
            run.throttled.clear()
            self._update(run)

    def throttle_call(self, run: Run, agent: str) -> None:
        """Record that a started call of a throttled run waits, so that its agent is not at 0."""
        run.is_throttled = True
        run.throttled[agent] += 1
        self._update(run)

    def expire(self, now: float) -> None:
        """End abandoned runs without calls, and demote quiet ones if that is switched on."""
        if self._demotes_quiet_runs:
            self._mark_quiet(now)
        abandoned = self._runs.pop_oldest(
            lambda run: now - run.last_seen_s >= RUN_TTL_S, MAX_EXPIRED
        )
        for key, run in abandoned:
            if run.calls:
                run.last_seen_s = now
                self._runs.put(key.tenant, key, run, run.num_bytes)
            else:
                self._close(run)

    def _mark_quiet(self, now: float) -> None:
        quiet_s = max(MIN_QUIET_S, QUIET_FACTOR * self._idle_times.long_s)
        while self._idle_since_s:
            key, since_s = next(iter(self._idle_since_s.items()))
            if now - since_s <= quiet_s:
                return
            del self._idle_since_s[key]
            run = self.find(key)
            assert run is not None
            run.is_quiet = True
            self._update(run)

    def _set_graph(self, run: Run, graph: Graph) -> RunState:
        run.state = state = RunState(graph)
        user = (run.key.tenant, graph)
        self._graph_users[user] += 1
        if self._graph_users[user] == 1:
            self._runs.share(run.key.tenant, graph.num_bytes)
        return state

    def _close(self, run: Run) -> None:
        """Forget a run that has been removed."""
        self._num_named -= not run.key.is_recognised
        if run.state is not None:
            user = (run.key.tenant, run.state.graph)
            self._graph_users[user] -= 1
            if not self._graph_users[user]:
                del self._graph_users[user]
                self._runs.share(run.key.tenant, -run.state.graph.num_bytes)
        run.state, run.overrides, run.forecast = None, {}, {}
        run.calls.clear()
        run.throttled.clear()
        self._idle_since_s.pop(run.key, None)
        self._refresh(run)  # at once: it frees memory
        self._ended.append(run.key)

    def _update(self, run: Run) -> None:
        """Update the next reads of a run that has moved, now or in a later step."""
        if self._work_left > 0:
            self._refresh(run)
        elif not run.is_stale:
            run.is_stale = True
            self._stale.push(run.key.tenant, run)
        if self.find(run.key) is run:
            self._runs.resize(run.key.tenant, run.key, run.num_bytes)

    def _refresh(self, run: Run) -> None:
        run.is_stale = False
        self._work_left -= run.work
        new = _agent_reads(run)
        old, run.agent_reads = run.agent_reads, new
        # A dict, not a set, whose order would differ from process to process.
        for agent in {**old, **new}:
            before, after = old.get(agent), new.get(agent)
            read_by = run.prefixes.get(agent) or (AgentReader(run.key.tenant, agent),)
            previous = run.counted.pop(agent, ())
            if after is not None:
                run.counted[agent] = read_by
            if before == after and previous == read_by:
                continue
            if after is not None:
                for reader in read_by:
                    self._count(reader, after)
            if before is not None:
                for reader in previous:
                    self._uncount(reader, before)
        for agent, readers in run.readers.items():
            self._changes.update(dict.fromkeys(readers, self.history_read(run, agent)))

    def _count(self, reader: AgentReader | PrefixReader, read: NextRead) -> None:
        minima = self._reads.get(reader)
        if minima is None:
            minima = self._reads[reader] = MinMultiset()
        minima.add(read)
        self._changes[reader] = self.next_read_of(reader)

    def _uncount(self, reader: AgentReader | PrefixReader, read: NextRead) -> None:
        minima = self._reads[reader]
        minima.remove(read)
        if not minima:
            del self._reads[reader]
        self._changes[reader] = self.next_read_of(reader)


def _prefix_bytes(agent: str) -> int:
    return _PREFIX_BYTES + sys.getsizeof(agent)


def _agent_reads(run: Run) -> dict[str, NextRead]:
    """Return the next read of each agent's prefix in a run."""
    next_read_of = dict(run.forecast)
    if run.state is not None:
        next_read_of.update(_graph_reads(run.state))
    next_read_of.update(run.overrides)
    if run.skips_prefetch:
        next_read_of = {agent: read.without_prefetch() for agent, read in next_read_of.items()}
    if run.is_throttled or run.is_quiet:
        next_read_of = {agent: read.throttled() for agent, read in next_read_of.items()}
    for agent, num_calls in run.calls.items():
        if num_calls > run.throttled[agent]:
            next_read_of[agent] = next_read.RUNNING
        elif agent not in next_read_of:  # it is in no graph
            next_read_of[agent] = next_read.RUNNING.throttled()
    return next_read_of


def _graph_reads(state: RunState) -> dict[str, NextRead]:
    """Return the next read of each agent's prefix by the progress of a run in its graph."""
    next_read_of: dict[str, NextRead] = {}
    chances, steps_of = state.probabilities(), state.steps()
    branches: defaultdict[float, list[int]] = defaultdict(list)
    for node, chance in chances.items():
        if chance < 1.0:
            branches[steps_of[node]].append(node)
    unlikely: set[int] = set()
    for nodes in branches.values():
        unlikely.update(sorted(nodes, key=chances.__getitem__, reverse=True)[MAX_BRANCHES:])
    for node, steps in enumerate(steps_of):
        if steps == NEVER:
            read = next_read.NEVER
        else:
            chance = chances.get(node, 1.0)
            read = next_read.scheduled(steps, chance=chance, skips_prefetch=node in unlikely)
        agent = state.graph.agents[node]
        next_read_of[agent] = min(next_read_of.get(agent, read), read)
    return next_read_of
