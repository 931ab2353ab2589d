"""Conversations that begin one another, and the calls that come of them."""

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
    """One request of a conversation, and whom it begins when it is answered.

    Attributes:
        messages: None where nothing is asked: it only begins others.
        tools: i32[any], at the start of prompts from here on; None: those of the turn before.
        pause_s: before it.
        forks: conversations that go on from here.
        spawns: conversations that begin anew, and the turn that waits for the end of each.
    """

    messages: Messages | None
    tools: np.ndarray | None = None
    num_output: int = 0
    pause_s: float = 0.0
    forks: tuple[str, ...] = ()
    spawns: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, eq=False)
class Conversation:
    """Turns, one after the other.

    Attributes:
        before: conversations that begin with this one, and that nobody waits for.
        has_history: whether a turn's prompt has the turns before it,
        has_answers: and the answers to them.
    """

    turns: tuple[Turn, ...]
    before: tuple[str, ...] = ()
    has_history: bool = True
    has_answers: bool = True

    @property
    def num_calls(self) -> int:
        """Of its own."""
        return sum(turn.messages is not None for turn in self.turns)

    def children(self) -> Iterator[str]:
        """Whom it begins, as often as it does."""
        yield from self.before
        for turn in self.turns:
            yield from turn.forks
            yield from (name for name, _ in turn.spawns)


def calls_of(root: str, conversations: Mapping[str, Conversation]) -> tuple[Call, ...]:
    """The calls of a conversation and of all that come of it; each waits for earlier ones only.

    Conversations must not begin one another in a circle.
    """
    calls: list[Call] = []
    # A stack of those that are under way, not recursion: they may begin one another in a long row.
    stack = [_play(_Begin(root), conversations, calls)]
    ends: tuple[int, ...] | None = None
    while stack:
        try:
            begin = stack[-1].send(ends)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as end:
            stack.pop()
            ends = end.value
        else:
            stack.append(_play(begin, conversations, calls))
            ends = None
    return tuple(calls)


@dataclass(frozen=True, eq=False)
class _Context:
    """What has been said so far. ``num_system``: tokens of the system messages it begins with."""

    tools: np.ndarray | None = None
    said: tuple[Part, ...] = ()
    num_system: int = 0

    @property
    def prompt(self) -> tuple[Part, ...]:
        return self.said if self.tools is None else (self.tools, *self.said)

    @property
    def num_fixed(self) -> int:
        return self.num_system + (0 if self.tools is None else len(self.tools))

    def asked(self, messages: Messages, tools: np.ndarray | None) -> _Context:
        return _Context(
            self.tools if tools is None else tools,
            (*self.said, messages.tokens),
            self.num_system if self.said else messages.num_system,
        )


class _Begin(NamedTuple):
    """A conversation that begins: where from, after which calls, and how long after them."""

    name: str
    context: _Context = _Context()
    after: tuple[int, ...] = ()
    pause_s: float = 0.0


def _play(
    begin: _Begin, conversations: Mapping[str, Conversation], calls: list[Call]
) -> Generator[_Begin, tuple[int, ...], tuple[int, ...]]:
    """Adds to ``calls``; yields whom it begins and is sent the calls that end them; its own end."""
    name, context, after, pause_s = begin
    conversation = conversations[name]
    session = f"{len(calls)}:{name}"  # one that is begun twice is two
    for child in conversation.before:
        yield _Begin(child, after=after, pause_s=pause_s)
    waits_for: dict[int, list[int]] = defaultdict(list)
    for place, turn in enumerate(conversation.turns):
        ended = waits_for.pop(place, [])
        if turn.messages is None:
            # Whom it waits for came after all that it waited for before.
            after, pause_s = (tuple(ended), 0.0) if ended else (after, pause_s)
            pause_s += turn.pause_s
        else:
            context = context if conversation.has_history else _Context()
            context = context.asked(turn.messages, turn.tools)
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
                    is_last=place == len(conversation.turns) - 1,
                )
            )
            if conversation.has_answers:
                context = replace(context, said=(*context.said, number))
            after, pause_s = (number,), 0.0
        for child in turn.forks:
            yield _Begin(child, context, after, pause_s)
        for child, join_at in turn.spawns:
            waits_for[join_at] += yield _Begin(child, after=after, pause_s=pause_s)
    return after
