"""Values of settings: parsed from text, or refused with what was expected."""

from pathlib import Path

import numpy as np
import pytest

from kvflow_jax.config.values import (
    COUNT,
    FOLDER,
    KEYS,
    NAME,
    NEW_FILE,
    NON_NEGATIVE,
    PORT,
    POSITIVE,
    SWITCH,
    one_of,
)


@pytest.mark.parametrize(
    ("values", "text", "value"),
    [
        (COUNT, "3", 3),
        (PORT, "0", 0),
        (POSITIVE, "0.5", 0.5),
        (NON_NEGATIVE, "0", 0.0),
        (NAME, "smollm2-135m", "smollm2-135m"),
        (KEYS, " key ", ("key",)),
        (FOLDER, "~/models", Path("~/models").expanduser()),
        (NEW_FILE, "trace.json", Path("trace.json")),
        (one_of("early", "evict"), "evict", "evict"),
    ],
)
def test_text_is_parsed(values, text, value):
    assert values.of_text(text) == value
    assert values.is_valid(value)


@pytest.mark.parametrize(
    ("values", "text", "message"),
    [
        (COUNT, "0", "must be an integer of at least 1; got '0'"),
        (COUNT, "many", "must be an integer of at least 1; got 'many'"),
        (PORT, "65536", "must be a port from 0 to 65535; got '65536'"),
        (POSITIVE, "inf", "must be a number above 0; got 'inf'"),
        (NON_NEGATIVE, "nan", "must be a number of at least 0; got 'nan'"),
        (NAME, "a\nb", r"must be a name of 1 to 4096 characters without line breaks; got 'a\\nb'"),
        (NEW_FILE, "/no/such/folder/x", "must be a file that can be written"),
        (NEW_FILE, "", "must be a file that can be written; got ''"),
        (one_of("early", "evict"), "never", "must be one of early, evict; got 'never'"),
    ],
)
def test_text_that_is_no_value_is_refused(values, text, message):
    with pytest.raises(ValueError, match=message):
        values.of_text(text)


def test_values_of_other_types_are_invalid():
    assert not COUNT.is_valid(1.0)
    assert not COUNT.is_valid(True)
    assert not POSITIVE.is_valid("1")
    assert not SWITCH.is_valid(1)
    assert not FOLDER.is_valid(3)
    assert COUNT.is_valid(np.int32(1))
    assert POSITIVE.is_valid(1)


def test_a_long_value_is_cut_in_its_message():
    assert len(NAME.complaint("m" * 5000)) < 200


def test_a_secret_is_not_in_its_message():
    assert KEYS.complaint("secret") == "must be text that is not empty"
