"""Which agents go on with their earlier prompts, as their requests show."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TypeVar

Value = TypeVar("Value")

MAX_CONVERSATIONS = 4096
MAX_AGENTS = 4096


class Conversations:
    """Compares the messages of each call with those of the call before it. Thread-safe.

    The server keeps the history of a session for its next call. That pays for agents whose prompts
    continue, such as one that reads the results of its tools, and takes memory from others where
    prompts are new each time. What the last two calls of a conversation showed of an agent decides.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # name -> number of messages and their digest
        self._last: OrderedDict[str, tuple[int, bytes]] = OrderedDict()
        self._continues: OrderedDict[str, bool] = OrderedDict()

    def continues(self, name: str, agent: str, body: Mapping[str, object]) -> bool:
        """Note a call of a conversation; return whether its agent's prompts continue.

        Args:
            name: of the conversation, as far as the caller can tell.
            body: of a chat, a response or Anthropic's messages.
        """
        messages = body.get("messages", body.get("input"))
        if not isinstance(messages, Sequence) or isinstance(messages, str):
            return False
        with self._lock:
            num, digest = self._last.pop(name, (0, b""))
            begun, whole = _digests(messages, num)
            # A call that is repeated, by a retry for example, says nothing.
            if num and (num, digest) != (len(messages), whole):
                _put(self._continues, agent, begun == digest, MAX_AGENTS)
            _put(self._last, name, (len(messages), whole), MAX_CONVERSATIONS)
            return self._continues.get(agent, False)


def _put(known: OrderedDict[str, Value], key: str, value: Value, most: int) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > most:
        known.popitem(last=False)


def _digests(messages: Sequence[object], num: int) -> tuple[bytes, bytes]:
    """Return the digest of the first ``num`` messages, b"" if there are no others, and of all."""
    state, begun = hashlib.blake2b(digest_size=16), b""
    for i, message in enumerate(messages):
        if i == num:
            begun = state.digest()
        state.update(json.dumps(message).encode() + b",")
    return begun, state.digest()
