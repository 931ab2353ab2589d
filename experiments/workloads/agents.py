"""Workflows beyond the paper's: loops, teams, and chains and graphs with random arrivals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from experiments.workloads.base import Call, Prompts, Run, Sizes, Workload
from kvflow_jax.workflow.step_graph import Graph
from kvflow_jax.workflow.workflow import Workflow


def branching(
    *, num_runs: int, num_rounds: int, sizes: Sizes, vocab_size: int, seed: int = 0
) -> Workload:
    """Return loops of a choice, a fan-out and a join; each tenant has its own agents.

    plan ──0.7──▶ search ─┬─▶ read0 ─┐
      └───0.3──▶ recall ──┼─▶ read1 ─┼─(all)─▶ write ──▶ plan
                          └─▶ read2 ─┘
    """
    prompts = Prompts(seed, vocab_size)
    readers = ["read0", "read1", "read2"]
    graph = Workflow("branching").entry("plan")
    graph.edge("plan", "search", probability=0.7).edge("plan", "recall", probability=0.3)
    for reader in readers:
        graph.edge("search", reader).edge("recall", reader).join(reader, "any")
        graph.edge(reader, "write")
    graph.join("write", "all").edge("write", "plan")
    runs = []
    for number in range(num_runs):
        tenant = f"client{number}"
        calls = _RunCalls(prompts, tenant, sizes)
        last: tuple[int, ...] = ()
        for round_index in range(num_rounds + 1):
            plan = calls.add("plan", last, round_index)
            branch = "search" if prompts.rng.random() < 0.7 else "recall"
            chosen = calls.add(branch, (plan,), round_index)
            read = tuple(calls.add(reader, (chosen,), round_index) for reader in readers)
            last = (calls.add("write", read, round_index),)
        runs.append(Run(tenant, "branching", graph.freeze(), tuple(calls)))
    return Workload("branching", tuple(runs))


def chain3(
    *, num_runs: int, rate: float, sizes: Sizes, vocab_size: int, num_apps: int = 8, seed: int = 0
) -> Workload:
    """Return runs of a chain of three agents, of several applications, with Poisson arrivals.

    Args:
        rate: arrivals, runs/s.
        num_apps: number of applications; the runs of one share the prefixes of its agents.
    """
    edges = [("draft", "check"), ("check", "final")]
    return _arriving("chain-3", edges, num_runs, rate, sizes, vocab_size, num_apps, seed)


def dag4(
    *, num_runs: int, rate: float, sizes: Sizes, vocab_size: int, num_apps: int = 8, seed: int = 0
) -> Workload:
    """Return runs of a diamond of four agents: two in parallel between the first and the last."""
    edges = [("split", "left"), ("split", "right"), ("left", "merge"), ("right", "merge")]
    return _arriving("dag-4", edges, num_runs, rate, sizes, vocab_size, num_apps, seed)


def dag10_wide(
    *, num_runs: int, rate: float, sizes: Sizes, vocab_size: int, num_apps: int = 4, seed: int = 0
) -> Workload:
    """Return runs of ten agents: eight in parallel between the first and the last."""
    middle = [f"worker{i}" for i in range(8)]
    edges = [("plan", worker) for worker in middle] + [(worker, "merge") for worker in middle]
    return _arriving("dag-10-wide", edges, num_runs, rate, sizes, vocab_size, num_apps, seed)


def team(
    *, num_runs: int, num_rounds: int, sizes: Sizes, vocab_size: int, seed: int = 0
) -> Workload:
    """Return a software team of five roles; reviews, and some tests, send the code back.

    product ─▶ architect ─▶ coder ─▶ reviewer ──0.6──▶ tester ──0.8──▶ product (the next task)
                              ▲ └──────0.4─┘             │
                              └────────────0.2───────────┘

    Coder, reviewer and tester get the previous output in their prompts. All runs share the roles.
    """
    prompts = Prompts(seed, vocab_size)
    graph = Workflow("team").edge("product", "architect").edge("architect", "coder")
    graph.edge("coder", "reviewer").edge("reviewer", "tester", probability=0.6)
    graph.edge("reviewer", "coder", probability=0.4).edge("tester", "product", probability=0.8)
    graph.edge("tester", "coder", probability=0.2).join("coder", "any").entry("product")
    runs = []
    for number in range(num_runs):
        calls = _RunCalls(prompts, "roles", sizes)
        last: tuple[int, ...] = ()
        for round_index in range(num_rounds + 1):
            last = (calls.add("product", last, round_index),)
            last = (calls.add("architect", last, round_index),)
            while True:
                last = (calls.add("coder", last, round_index, given=last),)
                last = (calls.add("reviewer", last, round_index, given=last),)
                if prompts.rng.random() < 0.4:
                    continue
                last = (calls.add("tester", last, round_index, given=last),)
                if prompts.rng.random() < 0.8:
                    break
        runs.append(Run("company", f"team{number}", graph.freeze(), tuple(calls)))
    return Workload("team", tuple(runs))


def leader_loop(
    *, num_runs: int, num_rounds: int, sizes: Sizes, vocab_size: int, seed: int = 0
) -> Workload:
    """Return loops of a leader that calls eight specialists in random order.

    The leader is called again after each specialist. Each agent has its own fixed prefix.
    """
    prompts = Prompts(seed, vocab_size)
    specialists = [f"specialist{i}" for i in range(8)]
    chances = [0.3, 0.2, 0.14, 0.11, 0.09, 0.07, 0.05, 0.04]
    graph = Workflow("leader loop").entry("leader").join("leader", "any")
    for specialist, chance in zip(specialists, chances, strict=True):
        graph.edge("leader", specialist, probability=chance).edge(specialist, "leader")
    runs = []
    for number in range(num_runs):
        tenant = f"client{number}"
        calls = _RunCalls(prompts, tenant, sizes)
        last: tuple[int, ...] = ()
        for round_index in range(num_rounds + 1):
            for stage in range(9):
                agent = (
                    "leader" if stage % 2 == 0 else str(prompts.rng.choice(specialists, p=chances))
                )
                last = (calls.add(agent, last, round_index, given=last),)
        runs.append(Run(tenant, "leader", graph.freeze(), tuple(calls)))
    return Workload("leader loop", tuple(runs))


class _RunCalls(list[Call]):
    """The calls of one run."""

    def __init__(self, prompts: Prompts, tenant: str, sizes: Sizes) -> None:
        self._prompts, self._tenant, self._sizes = prompts, tenant, sizes

    def add(
        self, agent: str, after: Sequence[int], round_index: int, *, given: Sequence[int] = ()
    ) -> int:
        """Append a call whose prompt ends with the outputs of ``given``; return its number."""
        call = self._prompts.call(self._tenant, agent, self._sizes, after, round_index)
        self.append(replace(call, parts=(*call.parts, *given)))
        return len(self) - 1


def _arriving(
    name: str,
    edges: list[tuple[str, str]],
    num_runs: int,
    rate: float,
    sizes: Sizes,
    vocab_size: int,
    num_apps: int,
    seed: int,
) -> Workload:
    """Return runs of one graph with Poisson arrivals; each call gets the outputs of its inputs."""
    prompts = Prompts(seed, vocab_size)
    workflow = Workflow(name)
    for source, target in edges:
        workflow.edge(source, target)
    graph = workflow.freeze()
    gaps = prompts.rng.exponential(1.0 / rate, num_runs)
    runs = []
    for number, start_s in enumerate(accumulate(gaps.tolist())):
        app = f"app{int(prompts.rng.integers(num_apps))}"
        calls = _in_order(graph, prompts, app, sizes)
        runs.append(Run(app, f"{name}-{number}", graph, calls, start_s - float(gaps[0])))
    return Workload(name, tuple(runs))


def _in_order(graph: Graph, prompts: Prompts, app: str, sizes: Sizes) -> tuple[Call, ...]:
    """Return a call of every node of an acyclic graph, whose nodes are in topological order."""
    calls = _RunCalls(prompts, app, sizes)
    for node, agent in enumerate(graph.agents):
        after = sorted(graph.sources[edge] for edge in graph.incoming[node])
        calls.add(agent, after, 1, given=after)
    return tuple(calls)
