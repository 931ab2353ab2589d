"""Pythonic: positions, nested values, tags, and a list that is an answer."""

from __future__ import annotations

from typing import Any

import pytest

from kvflow_jax.tools.syntaxes.pythonic import PYTHONIC
from tests.tools.parsing import parse


@pytest.mark.parametrize(
    ("text", "calls", "content"),
    [
        (
            "[get_weather('Paris', 3), f(x=[1, {'a': None}], y=True)]",
            [
                ("get_weather", {"city": "Paris", "days": 3}),
                ("f", {"x": [1, {"a": None}], "y": True}),
            ],
            "",
        ),
        ("<|python_start|>[f()]<|python_end|>", [("f", {})], ""),
        ("[1, 2]", [], "[1, 2]"),
        ("[f(x='\\d', y=nope, z={1})]", [("f", {"x": "\\d", "y": "nope", "z": [1]})], ""),
    ],
)
def test_outputs_are_read(text: str, calls: list[tuple[str, Any]], content: str) -> None:
    parsed = parse(PYTHONIC, text)
    assert (parsed.values, parsed.text) == (calls, content)
    assert parse(PYTHONIC, list(text)) == parsed
