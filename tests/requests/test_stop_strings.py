"""Stop strings, compared with a search in the whole text."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kvflow_jax.requests.stop_strings import StopStrings, StopStringsOutsideCalls
from kvflow_jax.tools.call_markup import CallMarkup

TEXT = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4)


def pieces_of(text, cuts):
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def first_stop(text, stops):
    """Return (start, end) of the stop string that is complete first, the longest of several."""
    ends = [(text.find(s) + len(s), text.find(s)) for s in stops if s in text]
    return min(ends)[::-1] if ends else None


@given(
    text=TEXT,
    stops=STOPS,
    cuts=st.lists(st.integers(0, 30), max_size=6),
    include_stop=st.booleans(),
)
def test_the_first_stop_string_ends_the_text_however_it_is_split(text, stops, cuts, include_stop):
    matcher, out, hit = StopStrings(stops, include_stop=include_stop), "", None
    for piece in pieces_of(text, cuts):
        passed, hit = matcher.push(piece)
        out += passed
        if hit:
            break
    else:
        out += matcher.flush()
    if (first := first_stop(text, stops)) is None:
        assert (hit, out) == (None, text)
    else:
        start, end = first
        assert hit == text[start:end]
        assert out == (text[:end] if include_stop else text[:start])


@given(before=TEXT, after=TEXT, stops=STOPS)
def test_a_stop_string_complete_before_stopping_is_allowed_does_not_count(before, after, stops):
    matcher = StopStrings(stops)
    out, hit = matcher.push(before, may_stop=False)
    assert hit is None
    passed, hit = matcher.push(after)
    out += passed if hit else passed + matcher.flush()
    ends = sorted(
        (start + len(stop), start)
        for stop in stops
        for start in range(len(before + after))
        if (before + after).startswith(stop, start) and start + len(stop) > len(before)
    )
    # A stop string that begins in text already passed on is not found.
    if hit is None:
        assert out == before + after
        assert all(start < len(before) for _, start in ends)
    else:
        assert (before + after).startswith(out + hit)
        assert len(out + hit) > len(before)


@given(text=TEXT, stops=STOPS)
def test_text_is_passed_on_as_soon_as_it_cannot_become_a_stop_string(text, stops):
    matcher, out = StopStrings(stops), ""
    for i, letter in enumerate(text):
        passed, hit = matcher.push(letter)
        out += passed
        if hit:
            start, end = first_stop(text, stops)
            assert i == end - 1
            assert len(out) <= start
            return
        # Pending text can still become a stop string.
        pending = text[len(out) : i + 1]
        assert not pending or any(stop.startswith(pending) for stop in stops)
    assert first_stop(text, stops) is None


def test_flush_returns_the_pending_text():
    matcher = StopStrings(["STOP"])
    assert matcher.push("an ST") == ("an ", None)
    assert matcher.push("O") == ("", None)
    assert matcher.flush() == "STO"


MARKUP = CallMarkup(spans=(("<call>", "</call>"),))


@given(cuts=st.lists(st.integers(0, 60), max_size=8))
def test_stop_strings_end_no_call_however_the_text_is_split(cuts):
    text = "one<call>two. <call</call>three. four"
    for stops, passed in (
        (["."], "one<call>two. <call</call>three"),
        (["two"], text),
        (["<call>"], text),
        (["</call>t"], text),
        (["e<ca"], text),
        (["four", "<c"], "one<call>two. <call</call>three. "),
    ):
        stop_strings = StopStringsOutsideCalls(stops, MARKUP)
        result, stop = "", None
        for piece in pieces_of(text, cuts):
            part, stop = stop_strings.push(piece)
            result += part
            if stop is not None:
                break
        else:
            result += stop_strings.flush()
        assert result == passed
        assert (stop is None) == (passed == text)


def test_the_beginning_of_a_call_at_the_end_is_text_that_may_stop():
    stop_strings = StopStringsOutsideCalls(["<ca"], MARKUP)
    assert stop_strings.push("a<cal") == ("a", None)
    assert stop_strings.flush() == ""
    stop_strings = StopStringsOutsideCalls(["x"], MARKUP)
    assert stop_strings.push("a<cal") == ("a", None)
    assert stop_strings.flush() == "<cal"


def test_a_special_token_within_a_call_does_not_stop() -> None:
    markup = CallMarkup((("<call>", "</call>"),))
    stops = StopStringsOutsideCalls(["<end>"], markup, hidden={3: "<end>"})
    assert stops.hidden_stop(3) == ("", "<end>")
    for text, stop in (("a<call>{", None), ("}</call>", ("", "<end>")), ("b", ("", "<end>"))):
        stops.push(text)
        assert stops.hidden_stop(3) == stop
    assert stops.hidden_stop(4) is None
