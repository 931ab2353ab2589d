"""Workloads of agents as data, for a ``Driver`` to play.

A workload is drawn from its seed in advance, choices at branches included: every arm, real or
simulated, is asked the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
