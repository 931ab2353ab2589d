"""Hermes: keys in any order, broken and missing markup, end tags within strings."""

from __future__ import annotations

from typing import Any

import pytest

from kvflow_jax.tools.syntaxes.hermes import HERMES
from tests.tools.parsing import parse


@pytest.mark.parametrize(
    ("text", "calls", "content"),
    [
        ('<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>', [("f", {"x": 1})], ""),
        (
            '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>',
            [("f", {"x": 1})],
            "",
        ),
        ('<tool_call>{"id": [1, "}"], "name": "f"}</tool_call>', [("f", {})], ""),
        ('<tool_call>{"name": "f", "arguments": null}</tool_call>', [("f", {})], ""),
        ('<tool_call>{"name": "f", "arguments": {"x": 1}</tool_call>ok', [("f", {"x": 1})], "ok"),
        (
            '<tool_call>{"name": "f", "arguments": {}}\n<tool_call>{"name": "ask"}',
            [("f", {}), ("ask", {})],
            "",
        ),
        ('<tool_call>{"name": "f", "arguments": {}} Done.', [("f", {})], "Done."),
        ("Use <tool_call>x</tool_call>.", [], "Use <tool_call>x</tool_call>."),
        ('<tool_call>{"name": "bad name"}', [], '<tool_call>{"name": "bad name"}'),
        (
            '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>',
            [("f", {"x": "</tool_call>"})],
            "",
        ),
    ],
)
def test_outputs_are_read(text: str, calls: list[tuple[str, Any]], content: str) -> None:
    parsed = parse(HERMES, text)
    assert (parsed.values, parsed.text) == (calls, content)
    assert parse(HERMES, list(text)) == parsed
