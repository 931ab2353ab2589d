"""The progress of all workflow runs, and the steps-to-execution of agents that follow from it."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from kvflow_jax.cache.reuse_tracker import (
    LIKELIHOOD_SPREAD,
    NEVER_STEPS,
    OTHER_BRANCH,
    THROTTLED_STEPS,
    UNKNOWN_STEPS,
    MinMultiset,
)
from kvflow_jax.control.idle_time_quantile import IdleTimeQuantile
from kvflow_jax.workflow.step_graph import NEVER, Graph, RunState

AgentKey = tuple[str, str]  # tenant, agent
RunKey = tuple[str, str]  # tenant, workflow_id

MAX_RUNS = 100_000
RUN_TTL_S = 600.0  # a run without calls or reports for this long is abandoned
# A run is quiet once it has idled for this factor of a long idle time, and for MIN_QUIET_S.
QUIET_FACTOR, MIN_QUIET_S = 8.0, 10.0
# Number of branches of a run, the most likely ones, whose prefixes are prefetched. The others count
# OTHER_BRANCH more.
MAX_BRANCHES = 4


@dataclass(slots=True)
class Run:
    """One execution of a workflow.

    Attributes:
        state: progress in its graph; None without one.
        overrides: agent -> steps as its caller gave them; they precede those of the graph.
        calls: number of calls in progress of each agent.
        throttled: number of those that admission control makes wait.
        agent_steps: agent -> steps-to-execution in this run.
        readers: agent -> readers of its conversations, which have the steps of the agent.
        is_throttled: whether admission control throttles the run; its steps count THROTTLED_STEPS
            more.
        is_quiet: whether it idles for much longer than runs do; counts as if it were throttled.
    """

    key: RunKey
    state: RunState | None
    last_seen_s: float
    overrides: dict[str, float] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    throttled: Counter[str] = field(default_factory=Counter)
    agent_steps: dict[str, float] = field(default_factory=dict)
    readers: dict[str, dict[Hashable, None]] = field(default_factory=dict)
    is_throttled: bool = False
    is_quiet: bool = False


class RunTracker:
    """All runs, and for each agent the minimum of its steps-to-execution over the runs.

    Args:
        demotes_quiet_runs: whether the steps of quiet runs count more. An abandoned run is not
            reported as such, and its prefixes must not displace those of live runs.

    Attributes:
        changes: readers whose steps have changed -> their steps, for the caller to publish and
            clear; only readers of runs that have moved.
        ended: runs that are over, for the caller to take and clear.
    """

    def __init__(self, *, demotes_quiet_runs: bool = False) -> None:
        self.changes: dict[Hashable, float] = {}
        self.ended: list[RunKey] = []
        self._runs: OrderedDict[RunKey, Run] = OrderedDict()  # least recently seen first
        self._steps: dict[AgentKey, MinMultiset] = {}
        self._demotes_quiet_runs = demotes_quiet_runs
        # Start of the idle time of each run without calls, the longest idle first.
        self._idle_since_s: OrderedDict[RunKey, float] = OrderedDict()
        self._idle_times = IdleTimeQuantile()

    def __len__(self) -> int:
        return len(self._runs)

    def get_or_begin(self, key: RunKey, graph: Graph | None, now: float) -> Run:
        """Return the run of this key; begin one if there is none or it is over.

        A graph given after the run began counts the calls in progress.
        """
        run = self._runs.get(key)
        if run is None or (run.state is not None and run.state.is_over):
            if run is not None:
                self.end(key)
            state = RunState(graph) if graph is not None else None
            run = self._runs[key] = Run(key, state, now)
            while len(self._runs) > MAX_RUNS:
                self.end(next(iter(self._runs)))
            self._update(run)
        elif run.state is None and graph is not None:
            run.state = RunState(graph)
            for agent, num_calls in run.calls.items():
                for _ in range(num_calls):
                    run.state.start(agent)
            self._update(run)
        self.touch(run, now)
        return run

    def touch(self, run: Run, now: float) -> None:
        """Record activity of a run: it is neither abandoned nor quiet."""
        run.last_seen_s = now
        if self._runs.get(run.key) is not run:
            return
        self._runs.move_to_end(run.key)
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
        return self._runs.get(key)

    def steps(self, agent: AgentKey) -> float:
        """Return the least steps-to-execution of an agent over all runs, else UNKNOWN_STEPS."""
        minima = self._steps.get(agent)
        return minima.minimum if minima else UNKNOWN_STEPS

    def start(self, run: Run, agent: str) -> None:
        """Record the start of an agent's call."""
        self._idle_since_s.pop(run.key, None)
        run.calls[agent] += 1
        run.overrides.pop(agent, None)
        if run.state is not None:
            run.state.start(agent)
        self._update(run)

    def finish(
        self, run: Run, agent: str, *, is_done: bool, overrides: Mapping[str, float]
    ) -> None:
        """Record the end of an agent's call.

        Args:
            is_done: whether it was answered; else it was aborted, and may be repeated.
            overrides: agent -> steps-to-execution, given by the caller; they replace earlier ones.
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
        if self._runs.get(run.key) is not run:
            return  # the run was ended meanwhile, and has no steps any more
        if is_done:
            run.overrides = dict(overrides)
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

    def attach_reader(self, run: Run, agent: str, reader: Hashable) -> float:
        """Give a conversation's reader the steps of an agent of a run; return them."""
        run.readers.setdefault(agent, {})[reader] = None
        return _reader_steps(run, agent)

    def detach_reader(self, run: Run, agent: str, reader: Hashable) -> None:
        """Undo ``attach_reader``; does nothing for an unknown reader."""
        readers = run.readers.get(agent, {})
        readers.pop(reader, None)
        if not readers:
            run.readers.pop(agent, None)

    def end(self, key: RunKey) -> bool:
        """Forget a run; return False if there is none of this key."""
        run = self._runs.pop(key, None)
        if run is None:
            return False
        run.state, run.overrides = None, {}
        run.calls.clear()
        run.throttled.clear()
        self._idle_since_s.pop(key, None)
        self._update(run)
        self.ended.append(key)
        return True

    def set_throttled(self, key: RunKey, *, is_throttled: bool) -> None:
        """Record that admission control throttles or resumes a run."""
        run = self._runs.get(key)
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
        while self._runs:
            key, run = next(iter(self._runs.items()))
            if now - run.last_seen_s < RUN_TTL_S:
                return
            if run.calls:
                run.last_seen_s = now
                self._runs.move_to_end(key)
            else:
                self.end(key)

    def _mark_quiet(self, now: float) -> None:
        quiet_s = max(MIN_QUIET_S, QUIET_FACTOR * self._idle_times.long_s)
        while self._idle_since_s:
            key, since_s = next(iter(self._idle_since_s.items()))
            if now - since_s <= quiet_s:
                return
            del self._idle_since_s[key]
            run = self._runs[key]
            run.is_quiet = True
            self._update(run)

    def _update(self, run: Run) -> None:
        tenant = run.key[0]
        new = _agent_steps(run)
        old, run.agent_steps = run.agent_steps, new
        # A dict, not a set, whose order would differ from process to process.
        for agent in {**old, **new}:
            before, after = old.get(agent), new.get(agent)
            if before == after:
                continue
            key = (tenant, agent)
            minima = self._steps.get(key)
            if minima is None:
                minima = self._steps[key] = MinMultiset()
            if after is not None:
                minima.add(after)
            if before is not None:
                minima.remove(before)
            if not minima:
                del self._steps[key]
            self.changes["agent", *key] = self.steps(key)
        for agent, readers in run.readers.items():
            self.changes.update(dict.fromkeys(readers, _reader_steps(run, agent)))


def _reader_steps(run: Run, agent: str) -> float:
    """Return the steps of a conversation of an agent.

    While the agent runs another conversation, this one is read by its next call at the earliest:
    it counts more than 1, and is not prefetched.
    """
    if agent in run.calls and not run.throttled[agent]:
        return 1.0 + OTHER_BRANCH + THROTTLED_STEPS * run.is_throttled
    return run.agent_steps.get(agent, UNKNOWN_STEPS)


def _agent_steps(run: Run) -> dict[str, float]:
    steps_of: dict[str, float] = {}
    if run.state is not None:
        graph, probabilities = run.state.graph, run.state.probabilities()
        branches = sorted(
            (node for node, probability in probabilities.items() if probability < 1.0),
            key=probabilities.__getitem__,
            reverse=True,
        )
        others = set(branches[MAX_BRANCHES:])
        for node, num_steps in enumerate(run.state.steps()):
            steps = NEVER_STEPS if num_steps == NEVER else float(num_steps)
            if node in probabilities:
                steps += LIKELIHOOD_SPREAD * (1.0 - probabilities[node])
                steps += OTHER_BRANCH * (node in others)
            agent = graph.agents[node]
            steps_of[agent] = min(steps_of.get(agent, steps), steps)
    steps_of.update(run.overrides)
    if run.is_throttled or run.is_quiet:
        steps_of = {
            agent: min(steps + THROTTLED_STEPS, NEVER_STEPS) for agent, steps in steps_of.items()
        }
    for agent, num_calls in run.calls.items():
        if num_calls > run.throttled[agent]:
            steps_of[agent] = 0.0
        elif agent not in steps_of:  # it is in no graph
            steps_of[agent] = THROTTLED_STEPS
    return steps_of
