from __future__ import annotations

import pytest

from kvflow_jax.tools.call_markup import CallMarkup, MarkupSplitter

TAGS = CallMarkup(spans=(("<c>", "</c>"), ("[C]", "")), first_char="{", tokens=("[ARGS]",))


def split(text: str, markup: CallMarkup = TAGS) -> list[tuple[str, bool]]:
    splitter = MarkupSplitter(markup)
    parts = [part for char in text for part in splitter.push(char)] + splitter.flush()
    merged: list[tuple[str, bool]] = []
    for part, is_markup in parts:
        if merged and merged[-1][1] == is_markup:
            part = merged.pop()[0] + part
        merged.append((part, is_markup))
    return merged


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("plain", [("plain", False)]),
        ("a<c>b</c>c", [("a", False), ("<c>b</c>", True), ("c", False)]),
        ("a<c>b", [("a", False), ("<c>b", True)]),
        ("a[C]b<c>c</c>d", [("a", False), ("[C]b<c>c</c>d", True)]),
        (" {a", [(" {a", True)]),
        (" a{", [(" a{", False)]),
        ("a<c", [("a<c", False)]),
    ],
)
def test_spans_are_markup(text: str, parts: list[tuple[str, bool]]) -> None:
    assert split(text) == parts


def test_the_markers_are_all_that_are_named() -> None:
    assert TAGS.markers == ("<c>", "</c>", "[C]", "[ARGS]")
