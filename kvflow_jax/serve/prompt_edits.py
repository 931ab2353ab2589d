"""Edits of prompts: what agents write anew into each of them is left out, or moved.

Nothing behind such a text would ever be found in the cache. Half characters are replaced.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any


class PromptEdit(Enum):
    """What was left out of the system texts of a prompt, moved, or replaced in its texts."""

    # Claude Code's first line. It has a checksum of the request.
    BILLING_HEADER = "billing_header"
    # How much of its context is left, which Claude Code writes into each turn.
    TOTAL_TOKENS = "total_tokens"
    # Dates and folders, which differ between sessions: moved to the first message of the user.
    ENVIRONMENT = "environment"
    # Halves of characters such as emojis, of strings that were cut: each is U+FFFD in the prompt.
    LONE_SURROGATES = "lone_surrogates"


# Each begins with a text, for which the search is fast: others take a second for a large body.
_BILLING_LINE = re.compile(r"x-anthropic-billing-header:[^\n]*\n?")
_TOTAL_TOKENS = re.compile(r"<total_tokens>[^<]{0,200}</total_tokens>")

# Of OpenCode, pi, qwen-code, Claude Code and agents like them. A form of its own begins each.
_ENVIRONMENT_LINE = re.compile(
    r"^[ \t]{0,8}(?:[-*] )?"
    r"(?:(?:today's|the current|current) (?:date|time)(?: and time)?(?: is)?"
    r"|(?:primary |current )?working directory|cwd)"
    r" ?:[^\n]*\n?",
    re.IGNORECASE | re.MULTILINE,
)

# Longer system texts are left as they are: lines of any case take a second for a large body.
MAX_ENVIRONMENT_CHARS = 1 << 18


def move_environment(
    messages: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], bool]:
    """Return messages with dates and folders of the system text in the first user message.

    The system text and the tools are then the same in all sessions of an agent. Only the system
    messages that the chat begins with are edited. Nothing is moved if no message of the user
    follows them.

    Args:
        messages: as ``read_messages`` returns them.

    Returns:
        The messages, and whether a line was moved.
    """
    edited = [{**message} for message in messages]
    user = next((i for i, message in enumerate(edited) if message["role"] != "system"), None)
    if user is None or edited[user]["role"] != "user":
        return edited, False
    moved: list[str] = []
    for message in edited[:user]:
        is_short = len(message["content"]) <= MAX_ENVIRONMENT_CHARS
        lines = _ENVIRONMENT_LINE.findall(message["content"]) if is_short else []
        moved += [line.strip() for line in lines]
        if lines:
            message["content"] = _ENVIRONMENT_LINE.sub("", message["content"]).rstrip("\n")
    if not moved:
        return edited, False
    edited[user]["content"] = "\n".join([*moved, "", edited[user]["content"]])
    return [m for m in edited[:user] if m["content"].strip()] + edited[user:], True


def without_environment(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the beginning of a chat as it is in the chat that ``move_environment`` returns."""
    first = {"role": "user", "content": ""}
    moved, _ = move_environment([*messages, first])
    return moved[:-1]


def edit_prompt(
    messages: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], frozenset[PromptEdit]]:
    """Return messages without what changes with every prompt, and what was left out.

    Only texts of the system are edited. A message of which nothing is left is dropped.

    Args:
        messages: as ``read_messages`` returns them.
    """
    edited: list[dict[str, Any]] = []
    edits: set[PromptEdit] = set()
    for message in messages:
        if message["role"] != "system":
            edited.append({**message})
            continue
        text = message["content"]
        for edit, remove in _EDITS.items():
            kept = remove(text)
            edits |= {edit} if len(kept) < len(text) else set()
            text = kept
        if text.strip() or not message["content"].strip():
            edited.append({**message, "content": text})
    return edited, frozenset(edits)


def _without_billing_lines(text: str) -> str:
    def kept(found: re.Match[str]) -> str:
        is_line = found.start() == 0 or text[found.start() - 1] == "\n"
        return "" if is_line else found[0]

    return _BILLING_LINE.sub(kept, text)


def _without_total_tokens(text: str) -> str:
    # With the end of the line before each.
    *before, last = _TOTAL_TOKENS.split(text)
    return "".join([*(piece.removesuffix("\n") for piece in before), last])


_EDITS = {
    PromptEdit.BILLING_HEADER: _without_billing_lines,
    PromptEdit.TOTAL_TOKENS: _without_total_tokens,
}
