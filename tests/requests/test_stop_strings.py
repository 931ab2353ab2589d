"""Stop strings against the plain search in the whole text."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kvflow_jax.requests.stop_strings import StopStrings

TEXT = st.text("ab\n", max_size=30)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), min_size=1, max_size=4)


def pieces_of(text, cuts):
    edges = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def first_stop(text, stops):
    """(start, end) of the stop string that is complete first; of those the longest."""
    ends = [(text.find(s) + len(s), text.find(s)) for s in stops if s in text]
    return min(ends)[::-1] if ends else None


@given(
    text=TEXT,
    stops=STOPS,
    cuts=st.lists(st.integers(0, 30), max_size=6),
    include_stop=st.booleans(),
)
def test_whatever_the_pieces(text, stops, cuts, include_stop):
    matcher, out, hit = StopStrings(stops, include_stop=include_stop), "", None
    for piece in pieces_of(text, cuts):
        news, hit = matcher.push(piece)
        out += news
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
def test_what_is_complete_before_it_may_stop_does_not_count(before, after, stops):
    matcher = StopStrings(stops)
    out, hit = matcher.push(before, may_stop=False)
    assert hit is None
    news, hit = matcher.push(after)
    out += news if hit else news + matcher.flush()
    ends = sorted(
        (at + len(stop), at)
        for stop in stops
        for at in range(len(before + after))
        if (before + after).startswith(stop, at) and at + len(stop) > len(before)
    )
    # A stop string may begin in text that has gone out: then it is found only if it was held.
    if hit is None:
        assert out == before + after
        assert all(at < len(before) for _, at in ends)
    else:
        assert (before + after).startswith(out + hit)
        assert len(out + hit) > len(before)


@given(text=TEXT, stops=STOPS)
def test_a_letter_at_a_time_stops_as_soon_as_can_be_known(text, stops):
    matcher, out = StopStrings(stops), ""
    for i, letter in enumerate(text):
        news, hit = matcher.push(letter)
        out += news
        if hit:
            start, end = first_stop(text, stops)
            assert i == end - 1
            assert len(out) <= start
            return
        # Nothing is held that cannot become a stop string any more.
        held = text[len(out) : i + 1]
        assert not held or any(stop.startswith(held) for stop in stops)
    assert first_stop(text, stops) is None


def test_what_is_held_comes_at_the_end():
    matcher = StopStrings(["STOP"])
    assert matcher.push("an ST") == ("an ", None)
    assert matcher.push("O") == ("", None)
    assert matcher.flush() == "STO"
