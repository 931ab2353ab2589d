"""Syntaxes found in templates, and what they write."""

from __future__ import annotations

import pytest

from kvflow_jax.tools.syntaxes import SYNTAXES, find_syntax
from kvflow_jax.tools.syntaxes.base import Call


@pytest.mark.parametrize(
    ("marks", "name"),
    [
        ("<tool_call> {{ tools }}", "hermes"),
        ("<tool_call><function=a><parameter=b>", "qwen3_coder"),
        ("[TOOL_CALLS]", "mistral"),
        ("<|python_tag|> ipython", "llama3_json"),
        ("[func_name1(params_name1=1)] <|python_tag|>", "pythonic"),
        ("<|tool|>{{ tools }}<|/tool|>", "phi4_mini_json"),
        ("<start_of_turn>", "gemma"),
        ("{{ messages }}", "hermes"),
        (None, "hermes"),
    ],
)
def test_a_syntax_is_found_in_the_template(marks: str | None, name: str) -> None:
    assert find_syntax(marks).name == name
    assert find_syntax(marks, "mistral").name == "mistral"


@pytest.mark.parametrize("name", SYNTAXES)
def test_arguments_that_are_no_json_are_written_as_text(name: str) -> None:
    assert "not {json" in SYNTAXES[name].write_calls([Call("f", "not {json")])
    assert "sunny" in SYNTAXES[name].write_result("sunny")
