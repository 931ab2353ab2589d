from __future__ import annotations

from kvflow_jax.tools.call_events import ArgumentsDelta, CallBegin, EventWriter, TextDelta


def test_neighbours_are_merged_and_space_around_calls_is_no_text() -> None:
    out = EventWriter()
    for text in ("\n", "a", " ", "b", " "):
        out.text(text)
    out.begin("f")
    out.arguments("{")
    out.arguments("")
    out.arguments("}")
    out.end()
    out.text("\n")
    out.begin("g")
    out.end()
    out.text(" \n")
    out.text("c")
    out.finish()
    assert out.drain() == [
        TextDelta("\na b "),
        CallBegin(0, "f"),
        ArgumentsDelta(0, "{}"),
        CallBegin(1, "g"),
        ArgumentsDelta(1, "{}"),
        TextDelta(" \nc"),
    ]
    assert out.drain() == []


def test_an_output_of_space_alone_is_text() -> None:
    out = EventWriter()
    out.text("\n\n")
    assert out.drain() == []
    out.finish()
    assert out.drain() == [TextDelta("\n\n")]


def test_calls_beyond_the_limit_are_counted_and_dropped() -> None:
    out = EventWriter(max_calls=1)
    for name in ("f", "g"):
        out.begin(name)
        out.arguments('{"x": 1}')
        out.end()
    assert out.num_calls == 2
    assert out.drain() == [CallBegin(0, "f"), ArgumentsDelta(0, '{"x": 1}')]
