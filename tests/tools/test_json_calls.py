from __future__ import annotations

import json

import pytest

from kvflow_jax.tools.json_calls import to_json
from kvflow_jax.tools.syntaxes import SYNTAXES
from tests.tools.parsing import parse

HERMES = SYNTAXES["hermes"]


@pytest.mark.parametrize("value", ["é", "\ud800", {"a": [1, None, True]}, 0.5])
def test_json_can_be_encoded(value: object) -> None:
    text = to_json(value)
    text.encode()
    assert json.loads(text) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b""])
def test_what_json_has_not_is_an_error(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        to_json(value)


@pytest.mark.parametrize(
    "arguments", ['{"x": 1,}', '{"x": "a\nb"}', "{'x': 1}", "[1]", "3", '{"x": 1', '{"x": "'],
)  # fmt: skip
def test_arguments_that_are_no_json_are_passed_on_as_far_as_they_go(arguments: str) -> None:
    parsed = parse(HERMES, f'<tool_call>{{"name": "f", "arguments": {arguments}')
    ((name, text),) = parsed.calls
    assert name == "f"
    assert arguments.startswith(text)


def test_a_deep_output_is_parsed_in_bounded_depth() -> None:
    deep = "[" * 100_000
    parsed = parse(HERMES, f'<tool_call>{{"name": "f", "arguments": {deep}')
    assert parsed.calls == [["f", deep]]
    nested = '{"function":' * 10_000
    assert parse(HERMES, f"<tool_call>{nested}").calls == []
    python = f"[f(x={'(' * 100_000}"
    assert parse(SYNTAXES["pythonic"], python).calls == [["f", ""]]
    closed = f"[f(x={'[' * 5000}{']' * 5000})]"
    ((_, text),) = parse(SYNTAXES["pythonic"], closed).calls
    assert isinstance(json.loads(text)["x"], str)
