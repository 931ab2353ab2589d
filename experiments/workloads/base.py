"""A workload as data: runs of calls, for a ``Driver`` to submit.

A workload is drawn from its seed in advance, including choices at branches and pauses: every arm,
real or simulated, gets the same requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kvflow_jax.workflow.step_graph import Graph

# Part of a prompt: tokens i32[any], or the number of an earlier call of the run, for its output.
Part = np.ndarray | int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of every call: the fixed prefix, the dynamic suffix, and the output."""

    fixed: int
    dynamic: int
    output: int

    def __str__(self) -> str:
        return f"{self.fixed}/{self.dynamic}/{self.output}"


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an agent.

    Attributes:
        agent: the agent that calls; empty to send the call without hints.
        parts: the parts of the prompt, in order.
        num_fixed: tokens of the fixed prefix, which all calls of the agent share.
        num_output: tokens to generate.
        after: numbers of the calls of the run that must end first.
        pause_s: time of a tool or a person, from the end of those calls or the start of the run.
        round: 0 for calls that find the cache cold; they are not measured.
        session: conversation of the tenant that the call continues, if any.
        is_last: True if the conversation, or the run, ends with this call.
    """

    agent: str
    parts: tuple[Part, ...]
    num_fixed: int
    num_output: int
    after: tuple[int, ...] = ()
    pause_s: float = 0.0
    round: int = 1
    session: str | None = None
    is_last: bool = False


@dataclass(frozen=True, eq=False)
class Run:
    """One execution of a workflow by a tenant.

    Attributes:
        tenant: the tenant, to which agents and sessions belong.
        graph: the step graph to send as a hint, if any.
        start_s: arrival, seconds after the first run.
    """

    tenant: str
    workflow_id: str
    graph: Graph | None
    calls: tuple[Call, ...]
    start_s: float = 0.0

    @cached_property
    def followers(self) -> tuple[tuple[int, ...], ...]:
        """Return the numbers of the calls that wait for each call."""
        followers: list[list[int]] = [[] for _ in self.calls]
        for number, call in enumerate(self.calls):
            for before in call.after:
                followers[before].append(number)
        return tuple(map(tuple, followers))

    @cached_property
    def prompt_lens(self) -> tuple[int, ...]:
        """Return the tokens of each call's prompt."""
        return tuple(
            sum(self.calls[p].num_output if isinstance(p, int) else len(p) for p in call.parts)
            for call in self.calls
        )


@dataclass(frozen=True, eq=False)
class Workload:
    """The requests that every arm gets."""

    name: str
    runs: tuple[Run, ...]

    @property
    def num_calls(self) -> int:
        return sum(len(run.calls) for run in self.runs)

    @cached_property
    def longest(self) -> int:
        """Return the tokens of the longest call, prompt and output."""
        return max(
            length + call.num_output
            for run in self.runs
            for length, call in zip(run.prompt_lens, run.calls, strict=True)
        )

    @cached_property
    def total(self) -> int:
        """Return the tokens of all prompts and outputs, the most that any cache can need."""
        return sum(
            length + call.num_output
            for run in self.runs
            for length, call in zip(run.prompt_lens, run.calls, strict=True)
        )


class Prompts:
    """Random tokens, the same for the same names.

    Args:
        vocab_size: vocabulary size of the model that will read them.
    """

    def __init__(self, seed: int, vocab_size: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.vocab_size = vocab_size
        self._named: dict[tuple[str, ...], np.ndarray] = {}

    def new(self, count: int) -> np.ndarray:
        """Return new random tokens, i32[count]."""
        return self.rng.integers(0, self.vocab_size, count).astype(np.int32)

    def named(self, count: int, *name: str) -> np.ndarray:
        """Return the tokens of a name, i32[count]; drawn at its first use."""
        tokens = self._named.get(name)
        if tokens is None:
            tokens = self._named[name] = self.new(count)
        return tokens

    def call(self, tenant: str, agent: str, sizes: Sizes, after: Sequence[int], round: int) -> Call:
        """Return a call with the fixed prefix of a tenant's agent, and a new dynamic suffix."""
        parts = (self.named(sizes.fixed, tenant, agent), self.new(sizes.dynamic))
        return Call(agent, parts, sizes.fixed, sizes.output, tuple(after), round=round)

    def lognormal(self, median: float, sigma: float, low: int, high: int) -> int:
        """Draw a count of a log-normal distribution, clipped to [low, high]."""
        return int(np.clip(median * np.exp(sigma * self.rng.standard_normal()), low, high))
