"""Workflows beyond the paper's: chains and graphs that arrive at random, teams, loops."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from experiments.workloads.base import Call, Prompts, Run, Sizes, Workload
from kvflow_jax.workflow.step_graph import Graph
from kvflow_jax.workflow.workflow import Workflow


def branching(
    *, num_runs: int, num_rounds: int, sizes: Sizes, vocab_size: int, seed: int = 0
) -> Workload:
    """A choice, a fan-out and a join, round and round, each client with agents of its own.

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
        client, calls = f"client{number}", _Calls(prompts, f"client{number}", sizes)
        last: tuple[int, ...] = ()
        for turn in range(num_rounds + 1):
            plan = calls.add("plan", last, turn)
            way = "search" if prompts.rng.random() < 0.7 else "recall"
            chosen = calls.add(way, (plan,), turn)
            read = tuple(calls.add(reader, (chosen,), turn) for reader in readers)
            last = (calls.add("write", read, turn),)
        runs.append(Run(client, "branching", graph.freeze(), tuple(calls)))
    return Workload("branching", tuple(runs))


def chain3(
    *, num_runs: int, rate: float, sizes: Sizes, vocab_size: int, num_apps: int = 8, seed: int = 0
) -> Workload:
    """Three agents in a row, runs of several applications arriving at random.

    Args:
        rate: runs a second, Poisson.
        num_apps: each has agents of its own, whose prefixes its runs share.
    """
    edges = [("draft", "check"), ("check", "final")]
    return _arriving("chain-3", edges, num_runs, rate, sizes, vocab_size, num_apps, seed)


def dag4(
    *, num_runs: int, rate: float, sizes: Sizes, vocab_size: int, num_apps: int = 8, seed: int = 0
) -> Workload:
    """A diamond of four agents: two at once between the first and the last."""
    edges = [("split", "left"), ("split", "right"), ("left", "merge"), ("right", "merge")]
    return _arriving("dag-4", edges, num_runs, rate, sizes, vocab_size, num_apps, seed)


def dag10_wide(
    *, num_runs: int, rate: float, sizes: Sizes, vocab_size: int, num_apps: int = 4, seed: int = 0
) -> Workload:
    """Eight agents at once between a first and a last."""
    middle = [f"worker{i}" for i in range(8)]
    edges = [("plan", one) for one in middle] + [(one, "merge") for one in middle]
    return _arriving("dag-10-wide", edges, num_runs, rate, sizes, vocab_size, num_apps, seed)


def team(
    *, num_runs: int, num_rounds: int, sizes: Sizes, vocab_size: int, seed: int = 0
) -> Workload:
    """A software team of five roles: reviews send the code back, tests now and then do.

    product ─▶ architect ─▶ coder ─▶ reviewer ──0.6──▶ tester ──0.8──▶ product (the next task)
                              ▲ └──────0.4─┘             │
                              └────────────0.2───────────┘

    The coder is handed what was said before; all clients have the same roles.
    """
    prompts = Prompts(seed, vocab_size)
    graph = Workflow("team").edge("product", "architect").edge("architect", "coder")
    graph.edge("coder", "reviewer").edge("reviewer", "tester", probability=0.6)
    graph.edge("reviewer", "coder", probability=0.4).edge("tester", "product", probability=0.8)
    graph.edge("tester", "coder", probability=0.2).join("coder", "any").entry("product")
    runs = []
    for number in range(num_runs):
        calls = _Calls(prompts, "roles", sizes)
        last: tuple[int, ...] = ()
        for turn in range(num_rounds + 1):
            last = (calls.add("product", last, turn),)
            last = (calls.add("architect", last, turn),)
            while True:
                last = (calls.add("coder", last, turn, given=last),)
                last = (calls.add("reviewer", last, turn, given=last),)
                if prompts.rng.random() < 0.4:
                    continue
                last = (calls.add("tester", last, turn, given=last),)
                if prompts.rng.random() < 0.8:
                    break
        runs.append(Run("company", f"team{number}", graph.freeze(), tuple(calls)))
    return Workload("team", tuple(runs))


def leader_loop(
    *, num_runs: int, num_rounds: int, sizes: Sizes, vocab_size: int, seed: int = 0
) -> Workload:
    """A team leader who calls eight specialists, in an order that the task decides.

    After each specialist the leader speaks again; each has a prompt of its own.
    """
    prompts = Prompts(seed, vocab_size)
    specialists = [f"specialist{i}" for i in range(8)]
    chances = [0.3, 0.2, 0.14, 0.11, 0.09, 0.07, 0.05, 0.04]
    graph = Workflow("leader loop").entry("leader").join("leader", "any")
    for one, chance in zip(specialists, chances, strict=True):
        graph.edge("leader", one, probability=chance).edge(one, "leader")
    runs = []
    for number in range(num_runs):
        client, calls = f"client{number}", _Calls(prompts, f"client{number}", sizes)
        last: tuple[int, ...] = ()
        for turn in range(num_rounds + 1):
            for stage in range(9):
                agent = (
                    "leader" if stage % 2 == 0 else str(prompts.rng.choice(specialists, p=chances))
                )
                last = (calls.add(agent, last, turn, given=last),)
        runs.append(Run(client, "leader", graph.freeze(), tuple(calls)))
    return Workload("leader loop", tuple(runs))


class _Calls(list[Call]):
    """The calls of one run."""

    def __init__(self, prompts: Prompts, owner: str, sizes: Sizes) -> None:
        self._prompts, self._owner, self._sizes = prompts, owner, sizes

    def add(self, agent: str, after: Sequence[int], turn: int, *, given: Sequence[int] = ()) -> int:
        """Another call, which is handed the answers of those ``given``; its number."""
        call = self._prompts.call(self._owner, agent, self._sizes, after, turn)
        if given:
            fields = (call.agent, (*call.parts, *given), call.num_fixed, call.num_output)
            call = Call(*fields, call.after, round=turn)
        self.append(call)
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
    """Runs of one graph by several applications, arriving at random; answers are handed on."""
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
    """A call of every node of a graph that has no cycle, nodes declared before those that wait."""
    calls = _Calls(prompts, app, sizes)
    for node, agent in enumerate(graph.agents):
        after = sorted(graph.sources[edge] for edge in graph.incoming[node])
        calls.add(agent, after, 1, given=after)
    return tuple(calls)
