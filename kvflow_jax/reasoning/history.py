"""Reasoning of earlier turns, in the messages that a chat template gets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# Clients send it back under either name, as servers give it.
FIELDS = ("reasoning_content", "reasoning")


def fields_read(chat_template: str | None) -> tuple[str, ...]:
    """Return those of ``FIELDS`` that a chat template reads of a message."""
    return tuple(
        field
        for field in FIELDS
        if re.search(rf"\.{field}\b|(['\"]){field}\1", chat_template or "")
    )


def with_history(
    messages: Sequence[Mapping[str, Any]], fields: Sequence[str]
) -> list[dict[str, Any]]:
    """Return messages whose reasoning is in ``fields`` alone.

    Without such a field the reasoning is dropped: it never becomes text of a prompt.
    """
    written = []
    for message in messages:
        kept = {name: value for name, value in message.items() if name not in FIELDS}
        text = next((message[name] for name in FIELDS if message.get(name)), None)
        if text is not None and message["role"] == "assistant":
            kept |= dict.fromkeys(fields, text)
        written.append(kept)
    return written
