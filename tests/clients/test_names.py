"""Names that the server accepts."""

from __future__ import annotations

import pytest

from kvflow_jax.clients.names import short_name
from kvflow_jax.workflow.workflow import MAX_ID_LEN, Workflow


@pytest.mark.parametrize("name", ["planner", "名", "x" * MAX_ID_LEN])
def test_a_name_that_fits_is_kept(name: str) -> None:
    assert short_name(name) == name


def test_long_names_are_shortened_and_stay_apart() -> None:
    names = [short_name("n" * 10_000 + end) for end in ("", "a", "b", "c")]
    assert len(set(names)) == 4
    assert all(name.startswith("nnn") and len(name) <= MAX_ID_LEN for name in names)
    assert names[0] == short_name("n" * 10_000)
    Workflow().edge(names[0], names[1])


def test_other_values_become_text() -> None:
    assert short_name(7) == "7"
    assert short_name("a\ud800") == "a\ufffd"
    assert short_name("\ud83d\ude00") == "\U0001f600"
    assert short_name("") == "unnamed"
