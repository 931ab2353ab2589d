"""Ids of clients: where they are read, and which are of no use."""

from __future__ import annotations

from typing import Any

import pytest

from kvflow_jax.serve.client_ids import MAX_ID_CHARS, MAX_JSON_CHARS, ClientIds


def test_the_first_header_that_has_an_id_counts() -> None:
    ids = ClientIds({"b": " x ", "c": "y", "user-agent": "OpenCode/1.2", "end": "TRUE"}, {})
    assert ids.header("a", "b", "c") == "x"
    assert ids.header("a") is None
    assert ids.has_header("c")
    assert not ids.has_header("a")
    assert ids.is_from("opencode")
    assert not ids.is_from("code")
    assert ids.flag("end")
    assert not ids.flag("c")
    assert not ids.has_invalid


def test_fields_are_found_at_their_paths() -> None:
    ids = ClientIds({}, {"metadata": {"session": "s"}, "key": "k"})
    assert ids.field("metadata", "session") == "s"
    assert ids.field("key", "session") is None
    assert ids.field("none", "session") is None
    assert ids.value("metadata") == {"session": "s"}
    assert not ids.has_invalid


@pytest.mark.parametrize("value", ["", " ", "x" * (MAX_ID_CHARS + 1), 5, True, [], {"a": 1}])
def test_an_id_that_is_empty_or_long_or_no_text_is_none(value: Any) -> None:
    ids = ClientIds({}, {"key": value})
    assert ids.field("key") is None
    assert ids.has_invalid
    assert ids.read("x" * MAX_ID_CHARS)


@pytest.mark.parametrize(
    ("text", "is_invalid"),
    [
        (None, False),
        (5, False),
        ("", False),
        ("[1]", False),
        ("{", False),
        ("[" * (MAX_JSON_CHARS - 1), False),
        ('{"a": "' + "x" * MAX_JSON_CHARS + '"}', True),
    ],
)
def test_a_text_that_is_no_short_json_object_is_an_empty_one(text: Any, is_invalid: bool) -> None:
    ids = ClientIds({}, {})
    assert ids.json(text) == {}
    assert ids.has_invalid is is_invalid
    assert ids.json('{"a": "b"}') == {"a": "b"}
