"""Readers over a text that arrives one character at a time, and all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvflow_jax.tools.text_source import Reading, TextSource, discard


def read_all(text: str, reader: Callable[[TextSource], Reading[Any]]) -> Any:
    """Return what ``reader`` returns, the same for every split that is tried."""
    results = []
    for pieces in ([text], list(text)):
        source = TextSource()
        results.append(run(source, reader(source), iter(pieces)))
    assert results[0] == results[1]
    return results[0]


def run(source: TextSource, reading: Reading[Any], pieces: Iterator[str]) -> Any:
    try:
        while True:
            next(reading)
            piece = next(pieces, None)
            if piece is None:
                source.end()
            else:
                source.add(piece)
    except StopIteration as end:
        return end.value


@pytest.mark.parametrize(
    ("text", "literal"), [("abc", "abc"), ("abd", "ab"), ("ab", "ab"), ("a", ""), ("", "")]
)
def test_take_returns_the_first_literal_that_comes_next(text: str, literal: str) -> None:
    assert read_all(text, lambda source: source.take("abc", "ab")) == literal


@pytest.mark.parametrize(
    ("text", "found", "passed"),
    [
        ("one<a>two", "<a>", "one"),
        ("one<b<a>", "<a>", "one<b"),
        ("one<bb>", "<bb>", "one"),
        ("one<a", "", "one<a"),
        ("", "", ""),
    ],
)
def test_pass_until_emits_the_text_before_a_marker(text: str, found: str, passed: str) -> None:
    def reader(source: TextSource) -> Reading[tuple[str, str]]:
        pieces: list[str] = []
        marker = yield from source.pass_until(["<a>", "<bb>"], pieces.append)
        return marker, "".join(pieces)

    assert read_all(text, reader) == (found, passed)


def test_a_marker_that_is_cut_may_be_dropped() -> None:
    def reader(source: TextSource) -> Reading[str]:
        pieces: list[str] = []
        yield from source.pass_until(["</end>"], pieces.append, drops_cut_marker=True)
        return "".join(pieces)

    assert read_all("one</en", reader) == "one"
    assert read_all("one</enx", reader) == "one</enx"


def test_the_text_since_a_mark_is_kept() -> None:
    def reader(source: TextSource) -> Reading[tuple[str, str]]:
        marker = yield from source.pass_until(["<a>"], discard)
        source.mark(len(marker))
        yield from source.skip_space()
        word = yield from source.take_while(str.isalpha, 2)
        return word, source.since_mark()

    assert read_all("x<a>  bcd", reader) == ("bc", "<a>  bc")


def test_no_more_is_read_than_what_decides() -> None:
    source = TextSource()
    passed: list[str] = []
    reading = source.pass_until(["<call>"], passed.append)
    next(reading)
    for piece, emitted in (("a", "a"), ("<", ""), ("c", ""), ("x", "<cx"), ("<call", "")):
        passed.clear()
        source.add(piece)
        next(reading)
        assert "".join(passed) == emitted
