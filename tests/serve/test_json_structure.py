"""Counts of a JSON text before it is parsed."""

from __future__ import annotations

import json

import pytest

from kvflow_jax.serve import json_structure
from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.json_structure import Limits, check_texts, has_few_values, scan

LIMITS = Limits(max_containers=100, max_values=1000)
UNBOUNDED = Limits(1 << 40, 1 << 40)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"a": [1, 2], "b": {}}', "{:[,],:{}}"),
        (rb'{"[\"]," : "\\", "x": "{\\\"}"}', "{:,:}"),
        (rb'["\\\\", "\\\\\"", ","]', "[,,]"),
        ('["é,", "😀"]'.encode(), "[,]"),
        (b"", ""),
    ],
)
def test_characters_in_strings_are_no_structure(text: bytes, expected: str) -> None:
    assert bytes(scan(text, LIMITS).kinds).decode() == expected


@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_strings_and_escapes_may_lie_across_pieces(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = rb'{"a\\": "\"[,]\\\\", "b": ["\\\"", {"c": "\u00e9"}]}'
    expected = scan(text, LIMITS)
    monkeypatch.setattr(json_structure, "_SCANNED_BYTES", size)
    found = scan(text, LIMITS)
    assert found.at.tolist() == expected.at.tolist()
    assert bytes(found.kinds) == bytes(expected.kinds)
    assert [text[at] for at in found.at] == found.kinds.tolist()


def test_a_bracket_is_within_its_own_container() -> None:
    assert scan(b'{"a":[1,[2]]}', LIMITS).depths.tolist() == [1, 1, 2, 2, 3, 3, 2, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" + b"[]," * 100 + b"1]", "more than 100 lists and objects"),
        (b"[" + b"1," * 1000 + b"1]", "more than 1000 values"),
    ],
)
def test_a_text_with_too_many_values_is_refused(text: bytes, message: str) -> None:
    with pytest.raises(ApiError, match=message) as raised:
        scan(text, LIMITS)
    assert (raised.value.status, raised.value.code) == (413, "body_too_complex")


def test_texts_within_the_limits_are_accepted() -> None:
    scan(b"[" * 90 + b"]" * 90, LIMITS)
    scan(json.dumps("[,{" * 1000).encode(), LIMITS)


def test_a_text_nested_too_deeply_is_refused() -> None:
    scan(b"[" * 200 + b"]" * 200, UNBOUNDED)
    with pytest.raises(ApiError, match="nested more than 200 deep"):
        scan(b"[" * 201 + b"]" * 201, UNBOUNDED)


@pytest.mark.parametrize("wide", ["😀", r"\ud83d\ude00"])
def test_a_text_that_grows_too_much_in_memory_is_refused(wide: str) -> None:
    """One wide character makes CPython keep four bytes for each of its string."""
    with pytest.raises(ApiError, match="values of 40 MiB in memory"):
        scan(b'"' + b"x" * (8 << 20) + wide.encode() + b'"', UNBOUNDED)
    # Text that is all in escapes does not grow.
    scan(b'"' + rb"\u4e2d" * (8 << 18) + wide.encode() + b'"', UNBOUNDED)
    # A pair of backslashes is no beginning of an escape, which would count as fewer characters.
    with pytest.raises(ApiError, match="in memory"):
        scan(b'"' + rb"\\u" * (3 << 20) + wide.encode() + b'"', UNBOUNDED)


@pytest.mark.parametrize("size", range(2, 12))
def test_a_wide_character_is_found_across_pieces(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_structure, "_SCANNED_BYTES", size)
    monkeypatch.setattr(json_structure, "MIN_MEMORY_BYTES", 0)
    with pytest.raises(ApiError, match="in memory"):
        scan(b'"' + b"x" * 100 + rb"\\\ud83d\ude00" + b'"', UNBOUNDED)


def test_containers_are_counted_by_their_memory() -> None:
    with pytest.raises(ApiError, match="in memory"):
        scan(b"[" + b"{}," * (1 << 17) + b"1]", UNBOUNDED)


def test_few_values_need_no_scan() -> None:
    assert has_few_values(b"[" * 100, LIMITS)
    assert has_few_values(b"x" * 5000, LIMITS)
    assert not has_few_values(b"[" * 101, LIMITS)
    assert not has_few_values(b"," * 1001, LIMITS)


def test_texts_within_a_body_have_limits_together() -> None:
    limits = Limits(max_containers=4, max_values=10)
    check_texts(["[1, 2]", '{"a": [1]}'], limits)
    check_texts(['{"a": "[[[[[[,,,,,,"}'] * 2, limits)  # in strings
    with pytest.raises(ApiError, match="more than 4 lists and objects") as raised:
        check_texts(["[[1], 2]"] * 3, limits)
    assert raised.value.status == 413
    with pytest.raises(ApiError, match="more than 10 values"):
        check_texts(["[1, 2, 3, 4]", "[1, 2, 3, 4, 5, 6, 7]"], limits)
