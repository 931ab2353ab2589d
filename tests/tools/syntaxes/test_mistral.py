"""Mistral: a list, and the new form with and without ids."""

from __future__ import annotations

from typing import Any

import pytest

from kvflow_jax.tools.syntaxes.mistral import MISTRAL
from tests.tools.parsing import parse


@pytest.mark.parametrize(
    ("text", "calls", "content"),
    [
        (
            '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}, {"name": "ask"}]',
            [("f", {"x": 1}), ("ask", {})],
            "",
        ),
        (
            '[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"x": 1}[TOOL_CALLS]ask{}',
            [("f", {"x": 1}), ("ask", {})],
            "",
        ),
    ],
)
def test_outputs_are_read(text: str, calls: list[tuple[str, Any]], content: str) -> None:
    parsed = parse(MISTRAL, text)
    assert (parsed.values, parsed.text) == (calls, content)
    assert parse(MISTRAL, list(text)) == parsed
