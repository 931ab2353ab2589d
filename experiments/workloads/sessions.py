"""Coding agents: conversations that grow with every call, and tools that run between calls.

Their shape follows public traces of 2026: vLLM's AgentX (median 43 turns a session, 142K tokens in
and 444 out, over 96% of the input cached, subagents in 44% of sessions) and TraceLab's 4,265 coding
sessions (4% of tool calls take 85% of the tools' time). Lengths are scaled by ``scale``.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from experiments.workloads.base import Call, Part, Prompts, Run, Workload
from kvflow_jax.workflow.workflow import Workflow

TURNS_MEDIAN, TURNS_SIGMA, MAX_TURNS = 43, 0.6, 150
SYSTEM_TOKENS = 12_000  # instructions and tools, shared by all sessions
GROWTH_MEDIAN, GROWTH_SIGMA = 1800, 1.1  # tokens that a tool or a person adds before a turn
OUTPUT_MEDIAN, OUTPUT_SIGMA = 300, 0.8
SUBAGENTS = 0.44  # share of sessions with subagents
# Pauses: most tools take a second or two; a few builds and test runs take minutes.
TOOL_MEDIAN_S, TOOL_SIGMA, LONG_TOOLS, LONG_MEDIAN_S = 1.5, 0.8, 0.04, 90.0


def coding(
    *,
    num_runs: int,
    rate: float,
    context: int,
    vocab_size: int,
    scale: float = 1.0,
    max_turns: int = MAX_TURNS,
    seed: int = 0,
) -> Workload:
    """Return sessions of a coding agent with Poisson arrivals.

    Args:
        rate: arrivals, sessions/s.
        context: tokens of the longest history; a session ends before it exceeds them.
        scale: factor of all lengths in tokens, for small models and fast runs.
        max_turns: turns of the longest session.
    """
    prompts = Prompts(seed, vocab_size)
    graph = Workflow("coding").entry("coder").join("coder", "any")
    graph.edge("coder", "coder", probability=0.9).edge("coder", "explorer", probability=0.1)
    graph.edge("explorer", "coder")
    start_s, runs = 0.0, []
    for number in range(num_runs):
        calls = _session(prompts, number, context, scale, max_turns)
        runs.append(Run(f"developer{number}", f"session{number}", graph.freeze(), calls, start_s))
        start_s += float(prompts.rng.exponential(1.0 / rate))
    return Workload("coding", tuple(runs))


def _session(
    prompts: Prompts, number: int, context: int, scale: float, max_turns: int
) -> tuple[Call, ...]:
    rng = prompts.rng
    num_turns = prompts.lognormal(TURNS_MEDIAN, TURNS_SIGMA, 3, max_turns)
    subagent_turns = set()
    if rng.random() < SUBAGENTS:
        subagent_turns = {int(t) for t in rng.integers(2, num_turns, size=int(rng.integers(1, 4)))}
    system = prompts.named(max(16, int(SYSTEM_TOKENS * scale)), "system")
    history: list[Part] = [system]
    length, last = len(system), -1
    calls: list[Call] = []
    for turn in range(num_turns):
        new = _tokens(prompts, GROWTH_MEDIAN, GROWTH_SIGMA, scale)
        output = _tokens(prompts, OUTPUT_MEDIAN, OUTPUT_SIGMA, scale)
        if length + new + output > context:
            break
        if turn in subagent_turns:
            last = _explore(prompts, calls, last, scale)
        history = [*history, prompts.new(new)]
        after = (last,) if last >= 0 else ()
        calls.append(
            Call(
                "coder",
                tuple(history),
                len(system),
                output,
                after,
                pause_s=tool_pause_s(rng) if after else 0.0,
                session=f"session{number}",
            )
        )
        last = len(calls) - 1
        history = [*history, last]
        length += new + output
    if calls:
        calls[-1] = replace(calls[-1], is_last=True)
    return tuple(calls)


def _explore(prompts: Prompts, calls: list[Call], last: int, scale: float) -> int:
    """Append the turns of a subagent, which starts an empty context; return its last number."""
    system = prompts.named(max(16, int(0.5 * SYSTEM_TOKENS * scale)), "explorer")
    history: list[Part] = [system]
    num_turns = int(prompts.rng.integers(2, 6))
    session = f"explorer{len(calls)}"
    for turn in range(num_turns):
        history = [*history, prompts.new(_tokens(prompts, GROWTH_MEDIAN, GROWTH_SIGMA, scale))]
        calls.append(
            Call(
                "explorer",
                tuple(history),
                len(system),
                _tokens(prompts, OUTPUT_MEDIAN, OUTPUT_SIGMA, scale),
                (last,) if last >= 0 else (),
                pause_s=tool_pause_s(prompts.rng) if turn else 0.0,
                session=session,
                is_last=turn == num_turns - 1,
            )
        )
        last = len(calls) - 1
        history = [*history, last]
    return last


def _tokens(prompts: Prompts, median: float, sigma: float, scale: float) -> int:
    return prompts.lognormal(median * scale, sigma, 4, max(5, int(12 * median * scale)))


def tool_pause_s(rng: np.random.Generator) -> float:
    """Draw the time of a tool."""
    median = LONG_MEDIAN_S if rng.random() < LONG_TOOLS else TOOL_MEDIAN_S
    return float(np.clip(median * np.exp(TOOL_SIGMA * rng.standard_normal()), 0.05, 600.0))
