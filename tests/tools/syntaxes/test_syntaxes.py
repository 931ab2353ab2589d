"""Outputs as models write them, broken ones too; syntaxes found in templates."""

from __future__ import annotations

import pytest

from kvflow_jax.tools.syntaxes import SYNTAXES, find_syntax
from kvflow_jax.tools.syntaxes.base import Call
from tests.tools.parsing import parse


@pytest.mark.parametrize(
    ("name", "text", "calls", "content"),
    [
        # Hermes: keys in another order, arguments as a string, no arguments, other keys.
        ("hermes", '<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>',
         [("f", {"x": 1})], ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>',
         [("f", {"x": 1})], ""),
        ("hermes", '<tool_call>{"id": [1, "}"], "name": "f"}</tool_call>', [("f", {})], ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": null}</tool_call>', [("f", {})], ""),
        # Missing braces and end tags.
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": 1}</tool_call>ok',
         [("f", {"x": 1})], "ok"),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}}\n<tool_call>{"name": "ask"}',
         [("f", {}), ("ask", {})], ""),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}} Done.', [("f", {})], "Done."),
        ("hermes", "Use <tool_call>x</tool_call>.", [], "Use <tool_call>x</tool_call>."),
        ("hermes", '<tool_call>{"name": "bad name"}', [], '<tool_call>{"name": "bad name"}'),
        # End tags within strings belong to them.
        ("hermes", '<tool_call>{"name": "f", "arguments": {"x": "</tool_call>"}}</tool_call>',
         [("f", {"x": "</tool_call>"})], ""),
        # Qwen3-Coder: types of the schema, literals of Python, no outer tag, no end tags.
        ("qwen3_coder", "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\nFrance\n"
         "</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
         [("get_weather", {"city": "Paris\nFrance", "days": 3})], ""),
        ("qwen3_coder", "<function=get_weather><parameter=days>None</parameter></function>",
         [("get_weather", {"days": None})], ""),
        ("qwen3_coder", "<function=f>\n</function>", [("f", {})], ""),
        ("qwen3_coder", "<function=get_weather><parameter=city>Paris</function>",
         [("get_weather", {"city": "Paris"})], ""),
        # Llama 3: a tag, several calls; JSON that is an answer; a call that was cut.
        ("llama3_json", '<|python_tag|>{"name": "f", "parameters": {"x": 1}}; {"name": "ask"}',
         [("f", {"x": 1}), ("ask", {})], ""),
        ("llama3_json", '{"name": "Alice", "age": 3}', [], '{"name": "Alice", "age": 3}'),
        ("llama3_json", '{"type": "function", "function": {"name": "f", "parameters": {}}}',
         [("f", {})], ""),
        # Pythonic: positions, nested values, tags; a list that is an answer.
        ("pythonic", "[get_weather('Paris', 3), f(x=[1, {'a': None}], y=True)]",
         [("get_weather", {"city": "Paris", "days": 3}),
          ("f", {"x": [1, {"a": None}], "y": True})], ""),
        ("pythonic", "<|python_start|>[f()]<|python_end|>", [("f", {})], ""),
        ("pythonic", "[1, 2]", [], "[1, 2]"),
        ("pythonic", r"[f(x='\d', y=nope, z={1})]",
         [("f", {"x": r"\d", "y": "nope", "z": [1]})], ""),
        # Mistral: a list, new form with and without ids.
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}, {"name": "ask"}]',
         [("f", {"x": 1}), ("ask", {})], ""),
        ("mistral", '[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"x": 1}[TOOL_CALLS]ask{}',
         [("f", {"x": 1}), ("ask", {})], ""),
        ("phi4_mini_json", 'functools[{"name": "f", "arguments": {"x": 1}}]',
         [("f", {"x": 1})], ""),
        ("phi4_mini_json", "Use functools[0].", [], "Use functools[0]."),
        ("gemma", "I look:\n```tool_code\nf(x=1)\nask(text='why')\n```\nDone.",
         [("f", {"x": 1}), ("ask", {"text": "why"})], "I look:\n\nDone."),
        ("gemma", "```tool_code\nprint(1 + 2)\n```", [("print", {"arg0": "1 + 2"})], ""),
    ],
)  # fmt: skip
def test_outputs_are_read(
    name: str, text: str, calls: list[tuple[str, object]], content: str
) -> None:
    parsed = parse(SYNTAXES[name], text)
    assert (parsed.values, parsed.text) == (calls, content)
    assert parse(SYNTAXES[name], list(text)) == parsed


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
