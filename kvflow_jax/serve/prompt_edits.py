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


_PATTERNS = {
    PromptEdit.BILLING_HEADER: re.compile(r"^x-anthropic-billing-header:[^\n]*\n?", re.MULTILINE),
    PromptEdit.TOTAL_TOKENS: re.compile(r"\n?<total_tokens>[^<]{0,200}</total_tokens>"),
}


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
        for edit, pattern in _PATTERNS.items():
            text, num_edits = pattern.subn("", text)
            edits |= {edit} if num_edits else set()
        if text.strip() or not message["content"].strip():
            edited.append({**message, "content": text})
    return edited, frozenset(edits)
