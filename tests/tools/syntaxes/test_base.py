from __future__ import annotations

from kvflow_jax.tools.call_events import CallEvent, EventWriter, TextDelta
from kvflow_jax.tools.syntaxes.base import pass_text, write_raw
from kvflow_jax.tools.text_source import TextSource


def events_of(text: str, hidden: tuple[str, ...]) -> tuple[str, list[CallEvent]]:
    """Return the marker that ``pass_text`` finds, and the text before and behind it."""
    source, out = TextSource(), EventWriter(hidden=hidden)
    source.add(text)
    source.end()
    marker = ""

    def read():
        nonlocal marker
        marker = yield from pass_text(source, out, ["<c>"])
        if marker:
            yield from source.take_while(str.isalpha, 9)
            write_raw(source, out)

    for _ in read():
        pass
    out.finish()
    return marker, out.drain()


def test_text_passes_up_to_a_marker_and_markup_that_is_no_call_is_text() -> None:
    assert events_of("a b", ()) == ("", [TextDelta("a b")])
    assert events_of("a<c>b", ()) == ("<c>", [TextDelta("a<c>b")])


def test_special_tokens_are_left_out() -> None:
    assert events_of("a</c>b", ("<c>", "</c>")) == ("", [TextDelta("ab")])
    assert events_of("a</c><c>b", ("<c>", "</c>")) == ("<c>", [TextDelta("ab")])
