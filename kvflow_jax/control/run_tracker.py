"""Where the runs of workflows stand, and what that says of each agent: how soon it runs again."""

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
    MinBag,
)
from kvflow_jax.control.idle_time_quantile import IdleTimeQuantile
from kvflow_jax.workflow.step_graph import NEVER, Graph, RunState

AgentKey = tuple[str, str]  # tenant, agent
RunKey = tuple[str, str]  # tenant, workflow_id

MAX_RUNS = 100_000
RUN_TTL_S = 600.0  # a run of which nothing is heard is abandoned
QUIET, MIN_QUIET_S = 8.0, 10.0  # long waits after which a run without calls is quiet; at least
# How many of the ways a run may take are prepared for; the others count as OTHER_BRANCH farther.
MAX_BRANCHES = 4


@dataclass(slots=True)
class Run:
    """One execution of a workflow.

    Attributes:
        state: where it stands in its graph; None without one.
        overrides: steps of agents as the caller gave them, which go before the graph's.
        calls: agents with calls in progress.
        held: those of them that wait for the run's turn.
        values: what the run says of each agent now.
        readers: conversations of its agents, which wait as long as the agent does.
        is_throttled: whether it is held back, so that what it reads counts as PARKED farther.
        is_quiet: whether nothing was heard of it for much longer than runs wait; it counts as far.
    """

    key: RunKey
    state: RunState | None
    last_seen_s: float
    overrides: dict[str, float] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    throttled: Counter[str] = field(default_factory=Counter)
    values: dict[str, float] = field(default_factory=dict)
    readers: dict[str, dict[Hashable, None]] = field(default_factory=dict)
    is_throttled: bool = False
    is_quiet: bool = False


class RunTracker:
    """All runs, and for each agent the soonest that any of them says.

    ``changes`` collects agents and readers whose steps are others than before, for the cache to be
    told: only those that the moved run touches. ``ended`` collects runs that are over.

    Args:
        notes_quiet: whether runs that wait far longer than others do count as farther. Nobody says
            when a run is abandoned, and what it would read must not keep others from theirs.
    """

    def __init__(self, *, notes_quiet: bool = False) -> None:
        self.changes: dict[Hashable, float] = {}
        self.ended: list[RunKey] = []
        self._runs: OrderedDict[RunKey, Run] = OrderedDict()  # heard of longest ago first
        self._steps: dict[AgentKey, MinBag] = {}
        self._notes_quiet = notes_quiet
        self._idle: OrderedDict[RunKey, float] = OrderedDict()  # without calls; longest first
        self._idle_times = IdleTimeQuantile()

    def __len__(self) -> int:
        return len(self._runs)

    def run(self, key: RunKey, graph: Graph | None, now: float) -> Run:
        """The run of this name, begun if there is none."""
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
            for agent, count in run.calls.items():
                for _ in range(count):
                    run.state.start(agent)
            self._update(run)
        self.touch(run, now)
        return run

    def touch(self, run: Run, now: float) -> None:
        """Something was heard of a run."""
        run.last_seen_s = now
        if self._runs.get(run.key) is not run:
            return
        self._runs.move_to_end(run.key)
        idle_since_s = self._idle.pop(run.key, None)
        if idle_since_s is not None:
            self._idle_times.note(now - idle_since_s)
        if not run.calls:
            self._idle[run.key] = now
        if run.is_quiet:
            run.is_quiet = False
            self._update(run)

    def find(self, key: RunKey) -> Run | None:
        return self._runs.get(key)

    def steps(self, agent: AgentKey) -> float:
        """Steps-to-execution of an agent over all runs; UNKNOWN_STEPS where none knows."""
        bag = self._steps.get(agent)
        return bag.least if bag else UNKNOWN_STEPS

    def start(self, run: Run, agent: str) -> None:
        """A call of an agent began."""
        self._idle.pop(run.key, None)
        run.calls[agent] += 1
        run.overrides.pop(agent, None)
        if run.state is not None:
            run.state.start(agent)
        self._update(run)

    def finish(
        self, run: Run, agent: str, *, is_done: bool, overrides: Mapping[str, float]
    ) -> None:
        """A call of an agent ended, with an answer or without; its caller overrides what is next."""
        run.calls[agent] -= 1
        if run.calls[agent] <= 0:
            del run.calls[agent]
        if run.throttled[agent] > run.calls[agent]:  # a call that was held has been given up
            run.throttled[agent] = run.calls[agent]
        if run.state is not None:
            if is_done:
                run.state.finish(agent)
            else:
                run.state.abandon(agent)
        if self._runs.get(run.key) is not run:
            return  # it was ended meanwhile, and says nothing any more
        if is_done:
            run.overrides = dict(overrides)
        self._update(run)
        if run.state is not None and run.state.is_over:
            self.end(run.key)

    def advance(self, run: Run, completed: Iterable[str], running: Iterable[str]) -> list[str]:
        """Progress that a client reports by itself; the agents that the graph does not know."""
        unknown = run.state.advance(completed, running) if run.state is not None else []
        self._update(run)
        if run.state is not None and run.state.is_over and not run.calls:
            self.end(run.key)
        return unknown

    def attach(self, run: Run, agent: str, reader: Hashable) -> float:
        """Let a conversation wait as long as an agent of the run does; its steps now."""
        run.readers.setdefault(agent, {})[reader] = None
        return _until_again(run, agent)

    def detach(self, run: Run, agent: str, reader: Hashable) -> None:
        readers = run.readers.get(agent, {})
        readers.pop(reader, None)
        if not readers:
            run.readers.pop(agent, None)

    def end(self, key: RunKey) -> bool:
        """Forget a run; False where there is none of this name."""
        run = self._runs.pop(key, None)
        if run is None:
            return False
        run.state, run.overrides = None, {}
        run.calls.clear()
        run.throttled.clear()
        self._idle.pop(key, None)
        self._update(run)
        self.ended.append(key)
        return True

    def throttle(self, key: RunKey, *, is_throttled: bool) -> None:
        """A run is held back, or goes on."""
        run = self._runs.get(key)
        if run is not None and run.is_throttled != is_throttled:
            run.is_throttled = is_throttled
            run.throttled.clear()
            self._update(run)

    def throttle_call(self, run: Run, agent: str) -> None:
        """A call of an agent, begun, waits for the run's turn: it reads no sooner than the rest."""
        run.is_throttled = True
        run.throttled[agent] += 1
        self._update(run)

    def expire(self, now: float) -> None:
        """End the runs of which nothing has been heard for long and that have no call; note those
        that are quiet."""
        if self._notes_quiet:
            self._note_quiet(now)
        while self._runs:
            key, run = next(iter(self._runs.items()))
            if now - run.last_seen_s < RUN_TTL_S:
                return
            if run.calls:
                run.last_seen_s = now
                self._runs.move_to_end(key)
            else:
                self.end(key)

    def _note_quiet(self, now: float) -> None:
        long_s = max(MIN_QUIET_S, QUIET * self._idle_times.long_s)
        while self._idle:
            key, since_s = next(iter(self._idle.items()))
            if now - since_s <= long_s:
                return
            del self._idle[key]
            run = self._runs[key]
            run.is_quiet = True
            self._update(run)

    def _update(self, run: Run) -> None:
        tenant = run.key[0]
        new = _values(run)
        old, run.values = run.values, new
        for agent in {**old, **new}:  # a set's order would be another in each process
            before, after = old.get(agent), new.get(agent)
            if before == after:
                continue
            key = (tenant, agent)
            bag = self._steps.get(key)
            if bag is None:
                bag = self._steps[key] = MinBag()
            if after is not None:
                bag.add(after)
            if before is not None:
                bag.remove(before)
            if not bag:
                del self._steps[key]
            self.changes["agent", *key] = self.steps(key)
        for agent, readers in run.readers.items():
            self.changes.update(dict.fromkeys(readers, _until_again(run, agent)))


def _until_again(run: Run, agent: str) -> float:
    """Steps of a conversation of an agent. While another runs, it waits for the next call at least,
    and is not brought back for this one."""
    if agent in run.calls and not run.throttled[agent]:
        return 1.0 + OTHER_BRANCH + THROTTLED_STEPS * run.is_throttled
    return run.values.get(agent, UNKNOWN_STEPS)


def _values(run: Run) -> dict[str, float]:
    values: dict[str, float] = {}
    if run.state is not None:
        graph, chances = run.state.graph, run.state.probabilities()
        branches = sorted(
            (node for node, chance in chances.items() if chance < 1.0),
            key=chances.__getitem__,
            reverse=True,
        )
        others = set(branches[MAX_BRANCHES:])
        for node, steps in enumerate(run.state.steps()):
            value = NEVER_STEPS if steps == NEVER else float(steps)
            if node in chances:
                value += LIKELIHOOD_SPREAD * (1.0 - chances[node])
                value += OTHER_BRANCH * (node in others)
            agent = graph.agents[node]
            values[agent] = min(values.get(agent, value), value)
    values.update(run.overrides)
    if run.is_throttled or run.is_quiet:
        values = {
            agent: min(value + THROTTLED_STEPS, NEVER_STEPS) for agent, value in values.items()
        }
    for agent, num_calls in run.calls.items():
        if num_calls > run.throttled[agent]:
            values[agent] = 0.0
        elif agent not in values:  # no graph knows of it
            values[agent] = THROTTLED_STEPS
    return values
