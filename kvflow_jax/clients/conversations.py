"""Which agents go on with their earlier prompts, and in which session, as their requests show."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

MAX_CALLS = 8192
MAX_NAMES = 4096  # of conversations, and of agents


class Conversations:
    """Compares the messages of each call with those of earlier ones. Thread-safe.

    The server keeps the history of a session for its next call. That pays for agents whose prompts
    continue, such as one that reads the results of its tools, and takes memory from others where
    prompts are new each time. What was seen last of an agent decides.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sessions: OrderedDict[bytes, str] = OrderedDict()  # by digest of a call's messages
        # By name, its last call and its session.
        self._last: OrderedDict[str, tuple[bytes, str]] = OrderedDict()
        self._continues: OrderedDict[str, bool] = OrderedDict()  # by agent

    def session_of(self, name: str, agent: str, body: Mapping[str, object]) -> str | None:
        """Note a call; return its session, None if its agent does not continue its prompts.

        Args:
            name: of the conversation, as far as the caller can tell. A call under a name that
                does not continue the one before shows that the agent does not. The first call under
                a name may continue one under another.
            body: of a chat, a response or Anthropic's messages.
        """
        messages = body.get("messages", body.get("input"))
        if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
            return None
        *begins, whole = _digests(agent, messages)
        with self._lock:
            last, session = self._last.get(name, (None, name))
            if last is None:
                last = next((one for one in reversed(begins) if one in self._sessions), None)
                session = name if last is None else self._sessions[last]
            if last not in (None, whole):  # a repeated call, such as a retry, shows nothing
                _put(self._continues, agent, last in begins, MAX_NAMES)
            _put(self._sessions, whole, session, MAX_CALLS)
            _put(self._last, name, (whole, session), MAX_NAMES)
            return session if self._continues.get(agent) else None


def _put(known: OrderedDict[Key, Value], key: Key, value: Value, most: int) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > most:
        known.popitem(last=False)


def _digests(agent: str, messages: Sequence[object]) -> list[bytes]:
    """Return the digest of each beginning of an agent's messages, the whole last."""
    state, digests = hashlib.blake2b(json.dumps(agent).encode(), digest_size=16), []
    for message in messages:
        state.update(json.dumps(message).encode() + b",")
        digests.append(state.digest())
    return digests
