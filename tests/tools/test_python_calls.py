from __future__ import annotations

import json

import pytest

from kvflow_jax.tools.python_calls import write_python_call
from kvflow_jax.tools.syntaxes.pythonic import PYTHONIC
from tests.tools.parsing import parse


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("'it\\'s, (ok)'", "it's, (ok)"),
        ('"a]"', "a]"),
        ("None", None),
        ("true", True),
        ("-1.5e3", -1500.0),
        ("(1, 2)", [1, 2]),
        ("{'a': [1, {}]}", {"a": [1, {}]}),
        ("1 + x", "1 + x"),
        ("b'x'", "b'x'"),
        ("1e999", "1e999"),
        ("x == 1", "x == 1"),
    ],
)
def test_a_value_is_json_or_its_own_text(written: str, value: object) -> None:
    ((name, arguments),) = parse(PYTHONIC, f"[f(x={written})]").values
    assert (name, arguments) == ("f", {"x": value})


def test_arguments_are_passed_on_one_by_one() -> None:
    text = write_python_call("f", {"x": [1], "y": "a"})
    assert text == "f(x=[1], y='a')"
    ((_, partial),) = parse(PYTHONIC, f"[{text[:-4]}").calls
    assert partial == '{"x": [1]'
    assert json.loads(partial + "}") == {"x": [1]}


@pytest.mark.parametrize("text", ["[f(x=1]", "[f(,)]", "[f(x=1"])
def test_a_broken_call_stays_begun(text: str) -> None:
    ((name, _),) = parse(PYTHONIC, text).calls
    assert name == "f"
