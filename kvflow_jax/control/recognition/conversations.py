"""Conversations: which prompts continue the history of an earlier call."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from kvflow_jax.reuse.delay import Delay

MAX_CONVERSATIONS = 1024  # of one tenant; those continued least recently are forgotten first
MAX_ALIKE = 32  # of one prompt; the first ones are not continued then
CONVERSATION_BYTES = 800  # estimated
_MIN_CALLS = 4  # of an agent, before anything is concluded from how they continue
_RARELY = 0.1
# A conversation counts as ended once it has paused for so long that it goes on with this chance.
_ENDED_CHANCE = 0.3
_MIN_PAUSES, _MAX_PAUSES = 0.5, 0.999  # shares of an agent's pauses that are waited for
MIN_TTL_S, MAX_TTL_S = 5.0, 3600.0
_MAX_COUNT = 64  # then counts are halved, so that what an agent does may change


@dataclass(slots=True, eq=False)
class Conversation:
    """A sequence of calls, each with the prompt and the answer of the one before.

    Attributes:
        name: of its session.
        agent: whose it is.
        last_call: number of its last call.
        num_prompt: tokens of that call's prompt.
        block: hash of its last whole block, which covers all before it; None: it has none.
        end: hash of the tokens behind that block.
        ended_s: when that call ended; None: it has not.
        is_used: whether another conversation's prompt has its last answer.
        is_kept: whether its client has said how long to keep it.
    """

    name: str
    agent: str | None
    last_call: int
    num_prompt: int = 0
    block: int | None = None
    end: int = 0
    ended_s: float | None = None
    is_used: bool = False
    is_kept: bool = False


@dataclass(slots=True)
class Continuations:
    """How the calls of an agent go on.

    Attributes:
        num_begun: calls that began a conversation.
        num_continued: calls that continued one.
        num_used: conversations whose answer another one's prompt has had.
        num_resumed: those of them that were continued all the same.
        pause: seconds between the calls of a conversation.
    """

    pause: Delay = field(default_factory=Delay)
    num_begun: int = 0
    num_continued: int = 0
    num_used: int = 0
    num_resumed: int = 0

    def note_call(self, conversation: Conversation | None, now: float) -> None:
        """Record a call, and the conversation that it continues."""
        if conversation is None:
            self.num_begun += 1
        else:
            self.num_continued += 1
            self.num_resumed += conversation.is_used
            if conversation.ended_s is not None:
                self.pause = self.pause.observe(now - conversation.ended_s)
        if self.num_begun + self.num_continued > _MAX_COUNT:
            self.num_begun, self.num_continued = self.num_begun // 2, self.num_continued // 2

    def note_use(self) -> None:
        """Record that the answer of a conversation was used in another one."""
        self.num_used += 1
        if self.num_used > _MAX_COUNT:
            self.num_used, self.num_resumed = self.num_used // 2, self.num_resumed // 2

    @property
    def are_seen(self) -> bool:
        """Whether its conversations are continued now and then."""
        num_calls = self.num_begun + self.num_continued
        return self.num_continued > 0 and self.num_continued >= _RARELY * num_calls

    @property
    def are_excluded(self) -> bool:
        """Whether its conversations are known to be hardly ever continued."""
        return self.num_begun + self.num_continued >= _MIN_CALLS and not self.are_seen

    @property
    def ttl_s(self) -> float | None:
        """Seconds after which a conversation has probably ended; None: not known yet.

        By Bayes' rule: of conversations that pause for longer than a share q of all pauses, those
        that go on are ``c (1 - q)`` and those that have ended ``1 - c``, where c is the chance of a
        call to be continued.
        """
        if self.num_continued < _MIN_CALLS:
            return None
        odds = self.num_begun / self.num_continued  # of an end
        share = 1.0 - odds * _ENDED_CHANCE / (1.0 - _ENDED_CHANCE)
        share = min(max(share, _MIN_PAUSES), _MAX_PAUSES)
        return min(max(self.pause.quantile(share), MIN_TTL_S), MAX_TTL_S)

    @property
    def end_with_use(self) -> bool:
        """Whether its conversations are known to end once their answer is used."""
        return self.num_used >= _MIN_CALLS and self.num_resumed < _RARELY * self.num_used


class Conversations:
    """The conversations of one tenant, by name and by their last prompt.

    A prompt continues the longest earlier one that it begins with, whole. What follows may differ
    from the answer: templates leave reasoning out, and write calls of tools in their own way.

    Args:
        page_size: tokens of a block.
    """

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._by_name: OrderedDict[str, Conversation] = OrderedDict()
        # By the hash of the last whole block of the prompt.
        self._by_block: dict[int, list[Conversation]] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def find(self, name: str | None, tokens: np.ndarray, hashes: np.ndarray) -> list[Conversation]:
        """Return the conversation of a name, else those that a prompt may continue.

        Several have the same last prompt, and differ in their answers: the branches of a run, or
        runs of one task.

        Args:
            tokens: i32[n], the prompt.
            hashes: i64[n // page_size], its block hashes.
        """
        if name is None:
            return self._continued(tokens, hashes)
        found = self._by_name.get(name)
        return [] if found is None else [found]

    def is_continued(
        self, conversation: Conversation, tokens: np.ndarray, hashes: np.ndarray
    ) -> bool:
        """Return whether a prompt begins with the last one of a conversation, and goes on.

        Args:
            tokens, hashes: see ``find``.
        """
        num_prompt, block = conversation.num_prompt, conversation.block
        if num_prompt >= len(tokens):
            return False
        if block is not None and hashes[num_prompt // self._page_size - 1] != block:
            return False
        return self._end_of(tokens, num_prompt) == conversation.end

    def last_of(self, tokens: np.ndarray, hashes: np.ndarray) -> Conversation | None:
        """Return the last conversation whose last prompt this is; None if that is unknown.

        Args:
            tokens, hashes: see ``find``.
        """
        alike = self._by_block.get(int(hashes[-1]), []) if len(hashes) else []
        end = self._end_of(tokens, len(tokens))
        same = (one for one in alike if (one.num_prompt, one.end) == (len(tokens), end))
        return max(same, key=lambda one: one.last_call, default=None)

    def put(self, conversation: Conversation, tokens: np.ndarray, hashes: np.ndarray) -> None:
        """Add a conversation, or record the prompt of its next call."""
        self._forget_prompt(conversation)
        conversation.num_prompt = len(tokens)
        conversation.block, conversation.end = None, self._end_of(tokens, len(tokens))
        if len(hashes):
            conversation.block = int(hashes[-1])
            alike = self._by_block.setdefault(conversation.block, [])
            alike.append(conversation)
            del alike[:-MAX_ALIKE]
        self._by_name[conversation.name] = conversation
        self._by_name.move_to_end(conversation.name)
        if len(self._by_name) > MAX_CONVERSATIONS:
            self._forget_prompt(self._by_name.popitem(last=False)[1])

    def _continued(self, tokens: np.ndarray, hashes: np.ndarray) -> list[Conversation]:
        for block in reversed(hashes.tolist()):
            if block in self._by_block:
                found = [
                    one for one in self._by_block[block] if self.is_continued(one, tokens, hashes)
                ]
                longest = max((one.num_prompt for one in found), default=0)
                if found:
                    return [one for one in found if one.num_prompt == longest]
        return []

    def _end_of(self, tokens: np.ndarray, num_prompt: int) -> int:
        """Return the hash of a prompt's tokens behind its last whole block.

        Those before are known by that block: an agent may have a conversation for each block of a
        long prompt, and none of them is read whole.
        """
        start = num_prompt - num_prompt % self._page_size
        return hash(tokens[start:num_prompt].tobytes())

    def _forget_prompt(self, conversation: Conversation) -> None:
        block = conversation.block
        if block is None or conversation not in (alike := self._by_block.get(block, [])):
            return
        alike.remove(conversation)
        if not alike:
            del self._by_block[block]
