"""The code blocks of README and docs.

The tests run a block without a comment above it. ``make clients`` runs a block below
``<!-- make clients -->``. Nothing runs a block below ``<!-- not run -->``.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVER = "http://127.0.0.1:8000"  # in blocks, the URL of a server of the embedded model
CLIENTS = "make clients"

_BLOCK = re.compile(r"^(?:<!-- ([\w ]+) -->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks_of(page: Path, mark: str | None = None, language: str = "python") -> list[str]:
    """Return the page's blocks with this mark, padded so that errors name the page's lines."""
    text = page.read_text()
    return [
        "\n" * text[: match.start(3)].count("\n") + match[3]
        for match in _BLOCK.finditer(text)
        if match[1] == mark and match[2] == language
    ]


def whole(blocks: list[str]) -> str:
    """Return the blocks of one page as one text, in which each line has its number in the page."""
    lines: list[str] = []
    for block in blocks:
        lines += block.splitlines()[len(lines) :]
    return "\n".join(lines) + "\n"
