"""Phi-4-mini: both markers, and text that looks like one."""

from __future__ import annotations

from typing import Any

import pytest

from kvflow_jax.tools.syntaxes.phi4_mini_json import PHI4_MINI_JSON
from tests.tools.parsing import parse


@pytest.mark.parametrize(
    ("text", "calls", "content"),
    [
        ('functools[{"name": "f", "arguments": {"x": 1}}]', [("f", {"x": 1})], ""),
        ("Use functools[0].", [], "Use functools[0]."),
    ],
)
def test_outputs_are_read(text: str, calls: list[tuple[str, Any]], content: str) -> None:
    parsed = parse(PHI4_MINI_JSON, text)
    assert (parsed.values, parsed.text) == (calls, content)
    assert parse(PHI4_MINI_JSON, list(text)) == parsed
