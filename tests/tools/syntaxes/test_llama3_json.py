"""Llama 3: a tag, several calls, and JSON that is an answer."""

from __future__ import annotations

from typing import Any

import pytest

from kvflow_jax.tools.syntaxes.llama3_json import LLAMA3_JSON
from tests.tools.parsing import parse


@pytest.mark.parametrize(
    ("text", "calls", "content"),
    [
        (
            '<|python_tag|>{"name": "f", "parameters": {"x": 1}}; {"name": "ask"}',
            [("f", {"x": 1}), ("ask", {})],
            "",
        ),
        ('{"name": "Alice", "age": 3}', [], '{"name": "Alice", "age": 3}'),
        ('{"type": "function", "function": {"name": "f", "parameters": {}}}', [("f", {})], ""),
    ],
)
def test_outputs_are_read(text: str, calls: list[tuple[str, Any]], content: str) -> None:
    parsed = parse(LLAMA3_JSON, text)
    assert (parsed.values, parsed.text) == (calls, content)
    assert parse(LLAMA3_JSON, list(text)) == parsed
