"""Slices give what the parser and the writer of JSON give for the whole text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvflow_jax.serve import large_json
from kvflow_jax.serve.json_structure import Limits, scan
from kvflow_jax.serve.large_json import dump, parse, parse_in_slices

UNBOUNDED = Limits(1 << 40, 1 << 40)
SLICE = 64


@pytest.fixture(autouse=True, scope="module")
def small_slices() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_json, "SLICE_BYTES", SLICE)
        yield


def in_slices(text: bytes) -> Any:
    return parse_in_slices(text, scan(text, UNBOUNDED))


LONE = [
    (r'["cut \ud83d"]', ["cut \ufffd"]),
    (r'["\udE00 x", {"\uD83d": "\ud83d\ude00"}]', ["\ufffd x", {"\ufffd": "\U0001f600"}]),
    (r'["\ud83d\ud83d\ude00\ude00"]', ["\ufffd\U0001f600\ufffd"]),
    (r'["\\\ud83d", "\\ud83d", "\\\\\ud83d\u0041"]', ["\\\ufffd", "\\ud83d", "\\\\\ufffdA"]),
]
ESCAPES = ["\\ud83d\\ude00" * 9, "\\\\" * 40, "\\n" * 40, "é" * 40]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=150),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=90), inner),
    max_leaves=60,
)


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_any_value_is_read_as_by_the_parser(value: Any, ascii_only: bool, indent: Any) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        encoded = json.dumps(value, indent=indent).encode()
    assert outcome(in_slices, encoded) == outcome(parse, encoded)


@given(
    st.lists(
        st.sampled_from(
            [*'[]{},:"\\1 ', '"a":', '"b"', "[1,", "]" * 5, '{"a":[', "x" * 70, " " * 70, *ESCAPES]
        )
    ).map("".join)
)
def test_a_text_that_is_no_json_is_refused_as_by_the_parser(text: str) -> None:
    encoded = text.encode()
    assert outcome(in_slices, encoded) == outcome(parse, encoded)


@pytest.mark.parametrize(
    "text",
    [
        '[{0},]', "[,{0}]", "[{0},,{0}]", "[{0}", "{0}]", "[{0}] [{0}]", "[[{0}],[{0}]], [[{0}]]",
        "[{0} {0}]", "[{0}}}", '{{"a":{0},}}', '{{{0}:1}}', '{{"a" {0}}}', "{{1:[{0}]}}",
        '{{"a":[{0}],"a":[1,{0}]}}', '["{0}', '"{0}\\"', '"{0}" "{0}"', "[[{0}]}}", "{0}",
        "  [{0}]  ", "[NaN,{0}]", '"' + " " * 70, '[{0},"' + " " * 70, '[{0},"' + " " * 70 + "]",
    ],
)  # fmt: skip
@pytest.mark.parametrize("part", ["1," * 60 + "1", '"' + "x" * 100 + '"', "[" + "2," * 50 + "3]"])
def test_mistakes_beside_the_cuts_are_found(text: str, part: str) -> None:
    encoded = text.format(part).encode()
    assert outcome(in_slices, encoded) == outcome(parse, encoded)


@pytest.mark.parametrize(
    "token", ["\\u00e9", "\\ud83d\\ude00", "\\\\", "\\n", "é", "😀", "x", '\\"']
)
def test_a_long_string_is_not_cut_within_an_escape(token: str) -> None:
    for num_before in range(13):
        text = b'"' + b"y" * num_before + token.encode() * SLICE + b'"'
        assert in_slices(text) == json.loads(text)


def outcome(read: Any, text: bytes) -> Any:
    """Return what a text is read as; errors are all alike."""
    try:
        return read(text)
    except ValueError:
        return ValueError


@pytest.mark.parametrize(("text", "value"), LONE)
def test_a_lone_surrogate_is_read_as_the_replacement_character(text: str, value: Any) -> None:
    mended: list[None] = []
    assert parse(text.encode(), lambda: mended.append(None)) == value
    assert mended
    padded = f'[{text}, "{"x" * 2 * SLICE}", {text}]'.encode()
    assert in_slices(padded) == [value, "x" * 2 * SLICE, value]


@pytest.mark.parametrize("text", [r'["\ud83d"', r'["\ud83"]', r'["\udzzz"]', r'["\ud83d"] 1'])
def test_what_else_is_wrong_beside_a_lone_surrogate_is_refused(text: str) -> None:
    assert outcome(parse, text.encode()) is ValueError


@pytest.mark.parametrize("num", [0, 1, 63, 64, 65, 200])
def test_text_written_in_slices_is_the_same(num: int) -> None:
    entries = [{"token": f"\u2028{i}", "top": [1.5, None, True]} for i in range(num)]
    choice = {"index": 0, "logprobs": {"content": entries, "refusal": None}, "text": "\u00e9"}
    body = {"id": "a", "choices": [choice] * 70, "usage": {}, "prompt_logprobs": entries}
    expected = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    assert dump(body).decode() == expected
    assert dump(body, ensure_ascii=True).decode() == json.dumps(body, separators=(",", ":"))


def test_a_number_that_is_none_of_json_is_an_error() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump({"choices": [{"logprob": float("inf")}]})
