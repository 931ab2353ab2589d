"""What is known of one tenant's callers: its runs, calls, answers, agents and conversations."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kvflow_jax.control.readers import RECOGNISED
from kvflow_jax.control.recognition.answer_index import MAX_ANSWERS, AnswerIndex, Held
from kvflow_jax.control.recognition.conversations import (
    CONVERSATION_BYTES,
    Continuations,
    Conversation,
    Conversations,
)
from kvflow_jax.control.recognition.prompt_agents import MAX_NODES, PromptAgents

MAX_RUNS = 512  # of one tenant; those that called least recently are forgotten first
_RUN_BYTES, _CALL_BYTES, _AGENT_BYTES = 700, 500, 250  # estimated


@dataclass(slots=True, eq=False)
class CallingRun:
    """A run, as its calls show it.

    Attributes:
        name: given by its client, or recognised.
        history: agents of its last calls, in the order of their starts.
        last_end_s: when a call of it last ended; minus infinity: none has.
        num_running: its calls in progress.
    """

    name: str
    last_end_s: float = -math.inf
    history: tuple[str, ...] = ()
    num_running: int = 0

    @property
    def is_recognised(self) -> bool:
        """Whether no client has named it."""
        return self.name.startswith(RECOGNISED)


@dataclass(slots=True, eq=False)
class Part:
    """Calls that certainly belong to one run: it was named, or each depends on one of the others.

    Attributes:
        run: to which it is taken to belong. Several parts are of one run if they follow each other
            as its calls do; that may be a mistake.
    """

    run: CallingRun


@dataclass(slots=True, eq=False)
class Call:
    """A call in progress, or one whose answer is remembered.

    Attributes:
        history: agents of its run's calls up to this one.
    """

    number: int
    part: Part
    history: tuple[str, ...]
    conversation: Conversation


class TenantCalls:
    """The calls of one tenant, and what they show.

    Args:
        page_size: tokens of a block.
    """

    def __init__(self, page_size: int) -> None:
        # The last part of each run, by name; the one with the last event is last.
        self.runs: OrderedDict[str, Part] = OrderedDict()
        self.calls: OrderedDict[int, Call] = OrderedDict()
        self.answers = AnswerIndex(self.part_of)
        self.agents = PromptAgents(page_size)
        self.conversations = Conversations(page_size)
        self.continuations: OrderedDict[str, Continuations] = OrderedDict()

    def part_of(self, call: int) -> Part | None:
        known = self.calls.get(call)
        return None if known is None else known.part

    def previous(self, continued: Conversation | None, held: Sequence[Held]) -> Call | None:
        """Return the call on which one depends: that which it continues, or whose answer it holds.

        Of the answers of one run, that of the last call.
        """
        if continued is not None:
            return self.calls.get(continued.last_call)
        part = self.answers.leading_run(held)
        calls = (self.calls.get(one.call) for one in held)
        return next((call for call in calls if call is not None and call.part is part), None)

    def last_part_of(self, prompt: np.ndarray, hashes: np.ndarray) -> Part | None:
        """Return what the last call with the same prompt, i32[n], is a part of."""
        conversation = self.conversations.last_of(prompt, hashes)
        return None if conversation is None else self.part_of(conversation.last_call)

    def continuations_of(self, agent: str) -> Continuations:
        found = self.continuations.setdefault(agent, Continuations())
        self.continuations.move_to_end(agent)
        if len(self.continuations) > MAX_NODES:
            self.continuations.popitem(last=False)
        return found

    def put_part(self, part: Part) -> None:
        """Make a part the last one of its run, and that run the last one."""
        self.runs[part.run.name] = part
        self.touch(part.run)
        if len(self.runs) > MAX_RUNS:
            self.runs.popitem(last=False)

    def touch(self, run: CallingRun) -> None:
        if run.name in self.runs:
            self.runs.move_to_end(run.name)

    def put_call(self, call: Call) -> None:
        self.calls[call.number] = call
        if len(self.calls) > 2 * MAX_ANSWERS:
            self.calls.popitem(last=False)

    @property
    def num_bytes(self) -> int:
        """Estimate of its memory."""
        return (
            _RUN_BYTES * len(self.runs)
            + _CALL_BYTES * len(self.calls)
            + _AGENT_BYTES * len(self.continuations)
            + CONVERSATION_BYTES * len(self.conversations)
            + self.answers.num_bytes
            + self.agents.num_bytes
        )
