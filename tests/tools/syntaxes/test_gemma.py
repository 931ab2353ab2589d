"""Gemma: calls within a fence."""

from __future__ import annotations

from typing import Any

import pytest

from kvflow_jax.tools.syntaxes.gemma import GEMMA
from tests.tools.parsing import parse


@pytest.mark.parametrize(
    ("text", "calls", "content"),
    [
        (
            "I look:\n```tool_code\nf(x=1)\nask(text='why')\n```\nDone.",
            [("f", {"x": 1}), ("ask", {"text": "why"})],
            "I look:\n\nDone.",
        ),
        ("```tool_code\nprint(1 + 2)\n```", [("print", {"arg0": "1 + 2"})], ""),
    ],
)
def test_outputs_are_read(text: str, calls: list[tuple[str, Any]], content: str) -> None:
    parsed = parse(GEMMA, text)
    assert (parsed.values, parsed.text) == (calls, content)
    assert parse(GEMMA, list(text)) == parsed
