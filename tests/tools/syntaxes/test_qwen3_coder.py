"""Qwen3-Coder: types of the schema, literals of Python, missing tags."""

from __future__ import annotations

from typing import Any

import pytest

from kvflow_jax.tools.syntaxes.qwen3_coder import QWEN3_CODER
from tests.tools.parsing import parse


@pytest.mark.parametrize(
    ("text", "calls", "content"),
    [
        (
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\nFrance\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
            [("get_weather", {"city": "Paris\nFrance", "days": 3})],
            "",
        ),
        (
            "<function=get_weather><parameter=days>None</parameter></function>",
            [("get_weather", {"days": None})],
            "",
        ),
        ("<function=f>\n</function>", [("f", {})], ""),
        (
            "<function=get_weather><parameter=city>Paris</function>",
            [("get_weather", {"city": "Paris"})],
            "",
        ),
    ],
)
def test_outputs_are_read(text: str, calls: list[tuple[str, Any]], content: str) -> None:
    parsed = parse(QWEN3_CODER, text)
    assert (parsed.values, parsed.text) == (calls, content)
    assert parse(QWEN3_CODER, list(text)) == parsed
