"""What a workload is: runs of calls, as data, for a ``Driver`` to play.

A workload is drawn from its seed in advance, choices at branches and pauses included: every arm,
real or simulated, is asked the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kvflow_jax.workflow.step_graph import Graph

# Of a prompt: tokens i32[any], or the number of an earlier call of the run, for what it answered.
Part = np.ndarray | int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of every call: the fixed prefix, what is new, and the output."""

    fixed: int
    dynamic: int
    output: int

    def __str__(self) -> str:
        return f"{self.fixed}/{self.dynamic}/{self.output}"


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an agent.

    Attributes:
        agent: that calls; empty: nobody says, nor anything else of what is read again.
        parts: of its prompt, one after the other.
        num_fixed: tokens at its start that the agent's calls have in common.
        after: numbers of the calls of its run that it waits for.
        pause_s: from the end of the last of those, or the start of the run: a tool, a person.
        round: 0 for those that find the cache cold, and are not counted.
        session: a conversation of the client that the call continues; None: of none.
        is_last: whether its conversation, or run, ends with it.
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
    """One execution of a workflow by a client.

    Attributes:
        start_s: when it arrives, seconds after the first.
    """

    client: str
    workflow_id: str
    graph: Graph | None
    calls: tuple[Call, ...]
    start_s: float = 0.0

    @cached_property
    def followers(self) -> tuple[tuple[int, ...], ...]:
        """Of each call, those that wait for it."""
        followers: list[list[int]] = [[] for _ in self.calls]
        for number, call in enumerate(self.calls):
            for before in call.after:
                followers[before].append(number)
        return tuple(map(tuple, followers))

    @cached_property
    def prompt_lens(self) -> tuple[int, ...]:
        """Tokens of each call's prompt."""
        return tuple(
            sum(self.calls[p].num_output if isinstance(p, int) else len(p) for p in call.parts)
            for call in self.calls
        )


@dataclass(frozen=True, eq=False)
class Workload:
    """What every arm is asked."""

    name: str
    runs: tuple[Run, ...]

    @property
    def num_calls(self) -> int:
        return sum(len(run.calls) for run in self.runs)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest call, prompt and output."""
        return max(
            length + call.num_output
            for run in self.runs
            for length, call in zip(run.prompt_lens, run.calls, strict=True)
        )

    @cached_property
    def total(self) -> int:
        """Tokens of all prompts and outputs: no cache can ever need more."""
        return sum(
            length + call.num_output
            for run in self.runs
            for length, call in zip(run.prompt_lens, run.calls, strict=True)
        )


class Prompts:
    """Random tokens, the same for the same names.

    Args:
        vocab_size: of the model that will read them.
    """

    def __init__(self, seed: int, vocab_size: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.vocab_size = vocab_size
        self._named: dict[tuple[str, ...], np.ndarray] = {}

    def new(self, count: int) -> np.ndarray:
        """i32[count] that no other call begins with."""
        return self.rng.integers(0, self.vocab_size, count).astype(np.int32)

    def named(self, count: int, *name: str) -> np.ndarray:
        """i32[count], the same whenever it is asked for by this name."""
        tokens = self._named.get(name)
        if tokens is None:
            tokens = self._named[name] = self.new(count)
        return tokens

    def call(self, client: str, agent: str, sizes: Sizes, after: Sequence[int], round: int) -> Call:
        """A call with a fixed prefix of its client's agent, and something new."""
        parts = (self.named(sizes.fixed, client, agent), self.new(sizes.dynamic))
        return Call(agent, parts, sizes.fixed, sizes.output, tuple(after), round=round)

    def lognormal(self, median: float, sigma: float, low: int, high: int) -> int:
        """A count with a heavy tail, clipped to [low, high]."""
        return int(np.clip(median * np.exp(sigma * self.rng.standard_normal()), low, high))
