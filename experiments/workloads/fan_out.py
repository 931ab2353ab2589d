"""A planner whose workers run side by side, each for several turns, until a verifier is content."""

from __future__ import annotations

from itertools import accumulate

from experiments.workloads.base import Call, Part, Prompts, Run, Workload
from experiments.workloads.sessions import tool_pause_s
from kvflow_jax.workflow.step_graph import Graph
from kvflow_jax.workflow.workflow import Workflow

TOOLS_TOKENS = 6000  # at the start of all prompts: all agents have the same tools
ROLE_TOKENS = 500
TASK_TOKENS, RESULT_MEDIAN, RESULT_SIGMA = 400, 700, 0.9
OUTPUT_MEDIAN, OUTPUT_SIGMA = 200, 0.7
MIN_WORKERS, MAX_WORKERS = 3, 8
MIN_TURNS, MAX_TURNS = 3, 7
SENDS_BACK, MAX_ATTEMPTS = 0.4, 3  # of the verifier


def fan_out(
    *, num_runs: int, rate: float, vocab_size: int, scale: float = 1.0, seed: int = 0
) -> Workload:
    """Return tasks of a research team with Poisson arrivals.

                 ┌▶ worker0 (3 to 7 turns) ─┐
        plan ────┼▶ ...                     ├─(all)─▶ verify ──0.4──▶ plan
                 └▶ worker7                 ┘

    A worker's turn waits for a tool: most take seconds, a few minutes. Its prompt is the shared
    tools, its role and its own history; the verifier reads the last answer of each worker.

    Args:
        rate: arrivals, runs/s.
        scale: factor of all lengths in tokens.
    """
    prompts = Prompts(seed, vocab_size)
    gaps = prompts.rng.exponential(1.0 / rate, num_runs)
    runs = []
    for number, start_s in enumerate(accumulate(gaps.tolist())):
        num_workers = int(prompts.rng.integers(MIN_WORKERS, MAX_WORKERS + 1))
        calls = _Task(prompts, number, scale).run(num_workers)
        graph = _graph(num_workers)
        runs.append(Run("team", f"task{number}", graph, calls, start_s - float(gaps[0])))
    return Workload("fan-out", tuple(runs))


def _graph(num_workers: int) -> Graph:
    """Return what is known of a run: its agents, and how likely each goes on."""
    mean_turns = (MIN_TURNS + MAX_TURNS) / 2
    graph = Workflow("fan-out").entry("plan")
    for worker in map("worker{}".format, range(num_workers)):
        graph.edge("plan", worker).join(worker, "any")
        graph.edge(worker, worker, probability=1 - 1 / mean_turns)
        graph.edge(worker, "verify", probability=1 / mean_turns)
    graph.join("verify", "all").join("plan", "any")
    graph.edge("verify", "plan", probability=SENDS_BACK)
    graph.edge("verify", "report", probability=1 - SENDS_BACK)
    return graph.freeze()


class _Task:
    """The calls of one run."""

    def __init__(self, prompts: Prompts, number: int, scale: float) -> None:
        self._prompts, self._number, self._scale = prompts, number, scale
        self._task = prompts.new(self._tokens(TASK_TOKENS))
        self._calls: list[Call] = []

    def run(self, num_workers: int) -> tuple[Call, ...]:
        rng = self._prompts.rng
        verdict: tuple[int, ...] = ()
        for attempt in range(MAX_ATTEMPTS):
            plan = self._add("plan", (*verdict,), after=verdict)
            answers = tuple(self._work(f"worker{i}", plan, attempt) for i in range(num_workers))
            verdict = (self._add("verify", answers, after=answers),)
            if rng.random() >= SENDS_BACK:
                break
        self._add("report", verdict, after=verdict, is_last=True)
        return tuple(self._calls)

    def _work(self, worker: str, plan: int, attempt: int) -> int:
        """Append the turns of a worker; return the number of the last one."""
        rng = self._prompts.rng
        num_turns = int(rng.integers(MIN_TURNS, MAX_TURNS + 1))
        history: tuple[Part, ...] = (plan,)
        last = plan
        for turn in range(num_turns):
            last = self._add(
                worker,
                history,
                after=(last,),
                pause_s=tool_pause_s(rng) if turn else 0.0,
                session=f"task{self._number} {worker} {attempt}",
                is_last=turn == num_turns - 1,
            )
            result = self._lognormal(RESULT_MEDIAN, RESULT_SIGMA)
            history = (*history, last, self._prompts.new(result))
        return last

    def _add(
        self,
        agent: str,
        given: tuple[Part, ...],
        *,
        after: tuple[int, ...],
        pause_s: float = 0.0,
        session: str | None = None,
        is_last: bool = False,
    ) -> int:
        """Append a call whose prompt ends with ``given``; return its number."""
        role = agent.rstrip("0123456789")
        tools = self._prompts.named(self._tokens(TOOLS_TOKENS), "tools")
        text = self._prompts.named(self._tokens(ROLE_TOKENS), role)
        call = Call(
            agent,
            (tools, text, self._task, *given),
            len(tools) + len(text),
            self._lognormal(OUTPUT_MEDIAN, OUTPUT_SIGMA),
            after,
            pause_s,
            session=session,
            is_last=is_last,
        )
        self._calls.append(call)
        return len(self._calls) - 1

    def _tokens(self, count: int) -> int:
        return max(4, int(count * self._scale))

    def _lognormal(self, median: float, sigma: float) -> int:
        median *= self._scale
        return self._prompts.lognormal(median, sigma, 4, max(5, int(12 * median)))
