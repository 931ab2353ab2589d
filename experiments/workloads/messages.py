"""Chat messages as tokens: one token for every four characters, equal for equal text.

Two texts share tokens up to their first difference, as under a real tokenizer, in whichever lines
of a trace they are. Images, audio and video count as no tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.workloads.lines import LineError, as_list, as_object

CHARS_PER_TOKEN = 4
_ROLE_CHARS = 16  # stands for a chat template's text around a message: 4 tokens, of its role
_SYSTEM_ROLES = ("system", "developer")
_MEDIA = ("image", "audio", "video")
# Odd multipliers with well-mixed bits, one for each character of a token; modulo 2**64.
_MIX = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64
)


@dataclass(frozen=True, eq=False)
class Messages:
    """The messages that a turn adds.

    Attributes:
        tokens: i32[any], never empty.
        num_system: tokens of its leading system messages.
    """

    tokens: np.ndarray
    num_system: int


def read_messages(value: Any, where: str, vocab_size: int) -> Messages:
    """Parse messages. Raises LineError if the value is not a list of messages, or is empty."""
    messages = as_list(value, where)
    if not messages:
        raise LineError(f"{where} must be a list that is not empty")
    tokens, num_system, is_start = [], 0, True
    for index, message in enumerate(messages):
        role = as_object(message, f"{where}[{index}]").get("role")
        if not isinstance(role, str):
            raise LineError(f"{where}[{index}] must have a role")
        header = f"{role[:_ROLE_CHARS]:{_ROLE_CHARS}}"
        tokens.append(text_tokens(header + _text(message), vocab_size))
        is_start = is_start and role in _SYSTEM_ROLES
        num_system += is_start * len(tokens[-1])
    return Messages(np.concatenate(tokens), num_system)


def read_tools(value: Any, where: str, vocab_size: int) -> np.ndarray | None:
    """Return the tokens of tool definitions, i32[any]. Raises LineError if not given as a list."""
    if value is None:
        return None
    tools = [text_tokens(_json(tool), vocab_size) for tool in as_list(value, where)]
    return np.concatenate([np.zeros(0, np.int32), *tools])


def text_tokens(text: str, vocab_size: int) -> np.ndarray:
    """Return i32[ceil(len(text) / CHARS_PER_TOKEN)]."""
    # JSON strings may contain lone surrogates, which are not characters.
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    groups = np.zeros((-(-len(codes) // CHARS_PER_TOKEN), CHARS_PER_TOKEN), np.uint64)
    groups.reshape(-1)[: len(codes)] = codes
    mixed: np.ndarray = (groups * _MIX).sum(axis=1) >> np.uint64(32)
    return (mixed % np.uint64(vocab_size)).astype(np.int32)


def _text(message: dict[str, Any]) -> str:
    """Return what a chat template shows of a message except its role: content, tool calls, ids."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    return "".join(map(_part_text, parts)) + (_json(rest) if rest else "")


def _part_text(part: Any) -> str:
    if part is None or isinstance(part, str):
        return part or ""
    if isinstance(part, dict):
        if isinstance(text := part.get("text"), str):
            return text
        if any(medium in str(part.get("type")) for medium in _MEDIA):
            return ""
    return _json(part)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)
