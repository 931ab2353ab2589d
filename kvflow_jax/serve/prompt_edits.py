"""Edits of prompts: what agents write anew into each of them is left out.

Nothing behind such a text would ever be found in the cache.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any


class PromptEdit(Enum):
    """What was left out of the system texts of a prompt."""

    # Claude Code's first line. It has a checksum of the request.
    BILLING_HEADER = "billing_header"
    # How much of its context is left, which Claude Code writes into each turn.
    TOTAL_TOKENS = "total_tokens"


# Each begins with a text, for which the search is fast: others take a second for a large body.
_BILLING_LINE = re.compile(r"x-anthropic-billing-header:[^\n]*\n?")
_TOTAL_TOKENS = re.compile(r"<total_tokens>[^<]{0,200}</total_tokens>")


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
