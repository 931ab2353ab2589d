"""Conversations that start other conversations, and the sequence of their calls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from experiments.workloads.base import Call, Part
from experiments.workloads.messages import Messages


@dataclass(frozen=True, eq=False)
class Turn:
    """One request of a conversation, and the conversations that start when it ends.

    Attributes:
        messages: messages of the request; None for a turn that only starts conversations.
        tools: tokens at the start of prompts from this turn on, i32[any]; None to keep the tools.
        num_output: tokens to generate.
        pause_s: pause before the turn.
        forks: conversations that continue from this turn, with its history.
        spawns: conversations that start without history, and the turn that waits for each to end.
    """

    messages: Messages | None
    tools: np.ndarray | None = None
    num_output: int = 0
    pause_s: float = 0.0
    forks: tuple[str, ...] = ()
    spawns: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, eq=False)
class Conversation:
    """A sequence of turns.

    Attributes:
        before: conversations that start together with this one; no turn waits for them.
        has_history: True if a prompt includes the previous turns.
        has_answers: True if it includes the outputs of previous turns, too.
    """

    turns: tuple[Turn, ...]
    before: tuple[str, ...] = ()
    has_history: bool = True
    has_answers: bool = True

    @property
    def num_calls(self) -> int:
        """Return the number of its own calls."""
        return sum(turn.messages is not None for turn in self.turns)

    def children(self) -> Iterator[str]:
        """Yield the conversations that it starts, as often as it starts them."""
        yield from self.before
        for turn in self.turns:
            yield from turn.forks
            yield from (name for name, _ in turn.spawns)


def calls_of(root: str, conversations: Mapping[str, Conversation]) -> tuple[Call, ...]:
    """Return the calls of a conversation and of its descendants, in topological order.

    Conversations must not start each other in a cycle.
    """
    calls: list[Call] = []
    # An explicit stack, not recursion: conversations may start each other in a long chain.
    stack = [_expand(_Start(root), conversations, calls)]
    ends: tuple[int, ...] | None = None
    while stack:
        try:
            start = stack[-1].send(ends)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as end:
            stack.pop()
            ends = end.value
        else:
            stack.append(_expand(start, conversations, calls))
            ends = None
    return tuple(calls)


@dataclass(frozen=True, eq=False)
class _Context:
    """A conversation's history. ``num_system``: tokens of its leading system messages."""

    tools: np.ndarray | None = None
    history: tuple[Part, ...] = ()
    num_system: int = 0

    @property
    def prompt(self) -> tuple[Part, ...]:
        return self.history if self.tools is None else (self.tools, *self.history)

    @property
    def num_fixed(self) -> int:
        return self.num_system + (0 if self.tools is None else len(self.tools))

    def extended(self, messages: Messages, tools: np.ndarray | None) -> _Context:
        return _Context(
            self.tools if tools is None else tools,
            (*self.history, messages.tokens),
            self.num_system if self.history else messages.num_system,
        )


class _Start(NamedTuple):
    """The start of a conversation: history, calls that it waits for, pause after them."""

    name: str
    context: _Context = _Context()
    after: tuple[int, ...] = ()
    pause_s: float = 0.0


def _expand(
    start: _Start, conversations: Mapping[str, Conversation], calls: list[Call]
) -> Generator[_Start, tuple[int, ...], tuple[int, ...]]:
    """Append the calls of a conversation, and return the numbers of those that end it.

    Yields the conversations that it starts, and is sent the numbers of the calls that end each.
    """
    name, context, after, pause_s = start
    conversation = conversations[name]
    session = f"{len(calls)}:{name}"  # unique, also for a conversation started twice
    for child in conversation.before:
        yield _Start(child, after=after, pause_s=pause_s)
    waits_for: dict[int, list[int]] = defaultdict(list)
    for index, turn in enumerate(conversation.turns):
        ended = waits_for.pop(index, [])
        if turn.messages is None:
            # The conversations that it waits for started after all earlier calls.
            after, pause_s = (tuple(ended), 0.0) if ended else (after, pause_s)
            pause_s += turn.pause_s
        else:
            context = context if conversation.has_history else _Context()
            context = context.extended(turn.messages, turn.tools)
            number = len(calls)
            calls.append(
                Call(
                    name,
                    context.prompt,
                    context.num_fixed,
                    turn.num_output,
                    tuple(dict.fromkeys((*after, *ended))),
                    pause_s + turn.pause_s,
                    session=session,
                    is_last=index == len(conversation.turns) - 1,
                )
            )
            if conversation.has_answers:
                context = replace(context, history=(*context.history, number))
            after, pause_s = (number,), 0.0
        for child in turn.forks:
            yield _Start(child, context, after, pause_s)
        for child, join_at in turn.spawns:
            waits_for[join_at] += yield _Start(child, after=after, pause_s=pause_s)
    return after
