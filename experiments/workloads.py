"""Workloads of agents as data, and a driver that plays them against any server.

A workload is drawn from its seed in advance, choices at branches included: every arm, real or
simulated, is asked the same. It is played in a closed loop: a call starts when those it follows
have ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from kvflow_jax.errors import KVFlowError
from kvflow_jax.hints import Hints
from kvflow_jax.outputs import EngineStats, Output
from kvflow_jax.sampling import SamplingParams
from kvflow_jax.step_graph import Graph
from kvflow_jax.workflow import Workflow


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an agent.

    Attributes:
        prompt: i32[any], the agent's fixed prefix of ``num_fixed`` tokens, then what is new.
        after: numbers of the calls of its run that it waits for.
        round: 0 for those that find the cache cold.
    """

    agent: str
    prompt: np.ndarray
    num_fixed: int
    num_output: int
    after: tuple[int, ...]
    round: int


@dataclass(frozen=True, eq=False)
class Run:
    """One execution of a workflow by a client."""

    client: str
    workflow_id: str
    graph: Graph
    calls: tuple[Call, ...]


@dataclass(frozen=True, eq=False)
class Workload:
    name: str
    runs: tuple[Run, ...]

    @property
    def num_calls(self) -> int:
        return sum(len(run.calls) for run in self.runs)

    @property
    def longest(self) -> int:
        """Tokens of the longest call, prompt and output."""
        return max(len(call.prompt) + call.num_output for run in self.runs for call in run.calls)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """What a call met. Times are seconds of the server's clock."""

    client: str
    agent: str
    round: int
    start_s: float
    first_token_s: float
    end_s: float
    num_prompt: int
    num_cached: int  # prompt tokens from the cache, and
    num_host: int  # of those, loaded from the host for this call
    num_fixed_recomputed: int

    @property
    def latency_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def ttft_s(self) -> float:
        return self.first_token_s - self.start_s


class Server(Protocol):
    """``EngineThread``, or a ``Simulation``."""

    @property
    def stats(self) -> EngineStats: ...

    def submit(
        self,
        prompt_ids: np.ndarray,
        params: SamplingParams,
        on_output: Callable[[Output], None],
        *,
        client: str = "",
        hints: Hints | None = None,
    ) -> Any: ...


class Driver:
    """Plays a workload. What follows a call is submitted from its last output.

    Attributes:
        records: in the order in which the calls ended.
        warm_stats: the server's, when the first call after round 0 started.
        is_done: set when the last call has ended, or one has failed.
    """

    def __init__(self, workload: Workload, server: Server, *, hinted: bool = True) -> None:
        self.records: list[CallRecord] = []
        self.warm_stats: EngineStats | None = None
        self.is_done = threading.Event()
        self._workload = workload
        self._server = server
        self._hinted = hinted
        self._lock = threading.Lock()  # guards what follows, and the records
        self._missing = {
            (run, number): set(call.after)
            for run in workload.runs
            for number, call in enumerate(run.calls)
        }
        self._error: Exception | None = None

    def start(self) -> None:
        """Start the calls that wait for none."""
        for (run, number), missing in list(self._missing.items()):
            if not missing:
                self._submit(run, number)

    def finish(self, timeout_s: float | None = None) -> list[CallRecord]:
        """Wait for the end; what all calls met.

        Raises:
            KVFlowError, TimeoutError: a call failed, or they do not end.
        """
        if not self.is_done.wait(timeout_s):
            raise TimeoutError(f"{self._workload.name}: only {len(self.records)} calls have ended")
        if self._error is not None:
            raise self._error
        return self.records

    def _submit(self, run: Run, number: int) -> None:
        call = run.calls[number]
        if call.round and self.warm_stats is None:
            self.warm_stats = self._server.stats
        hints = Hints(
            workflow_id=run.workflow_id,
            agent_id=call.agent,
            graph=run.graph,
            num_fixed=call.num_fixed,
        )

        def listen(output: Output) -> None:
            if output.finish_reason is not None:
                self._end(run, number, output)

        params = SamplingParams(max_tokens=call.num_output, temperature=0.0, ignore_eos=True)
        self._server.submit(
            call.prompt, params, listen, client=run.client, hints=hints if self._hinted else None
        )

    def _end(self, run: Run, number: int, output: Output) -> None:
        # On the engine's thread, where nobody would see an error.
        try:
            if output.error is not None:
                raise output.error
            self._note(run, number, output)
            for following in self._ready_after(run, number):
                self._submit(run, following)
        except KVFlowError as error:
            self._error = error
            self.is_done.set()

    def _note(self, run: Run, number: int, output: Output) -> None:
        call, stats = run.calls[number], output.stats
        assert stats is not None
        assert stats.first_token_s is not None
        record = CallRecord(
            client=run.client,
            agent=call.agent,
            round=call.round,
            start_s=stats.arrival_s,
            first_token_s=stats.first_token_s,
            end_s=stats.finished_s,
            num_prompt=stats.num_prompt_tokens,
            num_cached=stats.num_cached_tokens,
            num_host=stats.num_cached_host_tokens,
            num_fixed_recomputed=max(0, call.num_fixed - stats.num_cached_tokens),
        )
        with self._lock:
            self.records.append(record)
            if len(self.records) == self._workload.num_calls:
                self.is_done.set()

    def _ready_after(self, run: Run, number: int) -> list[int]:
        ready = []
        with self._lock:
            for following, call in enumerate(run.calls):
                if number in call.after:
                    missing = self._missing[run, following]
                    missing.discard(number)
                    if not missing:
                        ready.append(following)
        return ready


class _Prompts:
    """Random tokens: a fixed prefix for each agent, something new for each call."""

    def __init__(self, seed: int, vocab_size: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._vocab_size = vocab_size
        self._fixed: dict[tuple[str, str], np.ndarray] = {}

    def call(
        self,
        client: str,
        agent: str,
        sizes: Sizes,
        after: tuple[int, ...],
        round: int,
    ) -> Call:
        fixed = self._fixed.get((client, agent))
        if fixed is None:
            fixed = self._fixed[client, agent] = self._tokens(sizes.fixed)
        prompt = np.concatenate([fixed, self._tokens(sizes.dynamic)])
        return Call(agent, prompt, sizes.fixed, sizes.output, after, round)

    def choose(self, options: list[str], chances: list[float]) -> str:
        return options[int(self._rng.choice(len(options), p=chances))]

    def _tokens(self, count: int) -> np.ndarray:
        return self._rng.integers(0, self._vocab_size, count).astype(np.int32)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of every call: the fixed prefix, what is new, and the output."""

    fixed: int
    dynamic: int
    output: int


def cycle(
    *, num_agents: int, num_rounds: int, sizes: Sizes, vocab_size: int, seed: int = 0
) -> Workload:
    """Agents one after the other, round and round: the paper's single workflow.

    Round 0 warms every prefix; ``num_rounds`` follow.
    """
    return _chains("cycle", 1, num_agents, num_rounds, sizes, vocab_size, seed)


def concurrent(
    *,
    num_runs: int,
    num_agents: int,
    num_rounds: int,
    sizes: Sizes,
    vocab_size: int,
    seed: int = 0,
) -> Workload:
    """Clients who each go round a cycle of agents of their own, sharing nothing."""
    return _chains("concurrent", num_runs, num_agents, num_rounds, sizes, vocab_size, seed)


def _chains(
    name: str,
    num_runs: int,
    num_agents: int,
    num_rounds: int,
    sizes: Sizes,
    vocab_size: int,
    seed: int,
) -> Workload:
    prompts = _Prompts(seed, vocab_size)
    agents = [f"agent{i}" for i in range(num_agents)]
    graph = Workflow(name)
    for agent, following in zip(agents, agents[1:] + agents[:1], strict=True):
        graph.edge(agent, following)
    runs = []
    for number in range(num_runs):
        client = f"client{number}"
        calls = tuple(
            prompts.call(
                client,
                agents[i % num_agents],
                sizes,
                (i - 1,) if i else (),
                i // num_agents,
            )
            for i in range(num_agents * (num_rounds + 1))
        )
        runs.append(Run(client, name, graph.freeze(), calls))
    return Workload(name, tuple(runs))


def branching(
    *, num_runs: int, num_rounds: int, sizes: Sizes, vocab_size: int, seed: int = 0
) -> Workload:
    """A choice, a fan-out and a join, round and round.

    plan ──0.7──▶ search ─┬─▶ read0 ─┐
      └───0.3──▶ recall ──┼─▶ read1 ─┼─(all)─▶ write ──▶ plan
                          └─▶ read2 ─┘
    """
    prompts = _Prompts(seed, vocab_size)
    readers = ["read0", "read1", "read2"]
    graph = Workflow("branching").entry("plan")
    graph.edge("plan", "search", probability=0.7).edge("plan", "recall", probability=0.3)
    for reader in readers:
        graph.edge("search", reader).edge("recall", reader).join(reader, "any")
        graph.edge(reader, "write")
    graph.join("write", "all").edge("write", "plan")
    runs = []
    for number in range(num_runs):
        client = f"client{number}"
        calls: list[Call] = []

        def add(
            agent: str, after: tuple[int, ...], turn: int, calls: list[Call], client: str
        ) -> int:
            calls.append(prompts.call(client, agent, sizes, after, turn))
            return len(calls) - 1

        last: tuple[int, ...] = ()
        for turn in range(num_rounds + 1):
            plan = add("plan", last, turn, calls, client)
            way = prompts.choose(["search", "recall"], [0.7, 0.3])
            chosen = add(way, (plan,), turn, calls, client)
            read = tuple(add(reader, (chosen,), turn, calls, client) for reader in readers)
            last = (add("write", read, turn, calls, client),)
        runs.append(Run(client, "branching", graph.freeze(), tuple(calls)))
    return Workload("branching", tuple(runs))
