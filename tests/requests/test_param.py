"""Kinds of sampling parameters: what they accept, in which form they keep it, their errors."""

import math

import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.requests.param import (
    Flag,
    Integer,
    Number,
    Strings,
    StructuredOutputs,
    TokenBias,
    TokenIds,
)


@pytest.mark.parametrize(
    ("param", "value", "kept"),
    [
        (Integer("", low=1, high=3), 3, 3),
        (Integer("", low=1), 10**30, 10**30),
        (Number("", low=0.0, high=1.0), 0, 0),
        (Flag(""), False, False),
        (Strings("", max_num=2, max_len=3), "END", ("END",)),
        (Strings("", max_num=1, max_len=3), ["", "END"], ("END",)),
        (TokenIds("", max_num=2), [5, 0], (5, 0)),
        (TokenBias("", low=-1.0, high=1.0, max_num=1), {5: 1}, {5: 1}),
        (StructuredOutputs(""), {"regex": "a"}, StructuredOutputsParams(regex="a")),
    ],
)
def test_accepted_values_are_kept_in_one_form(param, value, kept):
    assert param.check("name", value) == kept


@pytest.mark.parametrize(
    ("param", "value", "message"),
    [
        (Integer("", low=1), 0, "name must be at least 1, got 0"),
        (Integer("", low=1, high=3), 4, "name must be between 1 and 3, got 4"),
        (Integer("", low=1), True, "name must be an integer, got True"),
        (Number("", low=0.0, high=1.0), 1.5, "name must be in [0, 1], got 1.5"),
        (Number("", low=0.0, high=1.0, low_open=True), 0.0, "name must be in (0, 1], got 0.0"),
        (Number("", low=0.0, high=1.0), math.nan, "name must be in [0, 1], got nan"),
        (Number("", low=0.0, high=1.0), "hot", "name must be a number, got 'hot'"),
        (Flag(""), 1, "name must be true or false, got 1"),
        (Strings("", max_num=2, max_len=3), [5], "name must be a string or a list of strings"),
        (Strings("", max_num=1, max_len=3), ["a", "b"], "name may hold up to 1 strings, got 2"),
        (Strings("", max_num=1, max_len=3), "long", "a name string may have up to 3 characters"),
        (TokenIds("", max_num=2), {5}, "name must be a list of token ids"),
        (TokenIds("", max_num=2), [1, 2, 3], "name may hold up to 2 ids, got 3"),
        (TokenIds("", max_num=2), ["a"], "name must be an integer, got 'a'"),
        (StructuredOutputs(""), "a", "name must be an object with one of json, regex"),
        (TokenBias("", low=0.0, high=1.0, max_num=1), [5], "name must map token ids to numbers"),
        (TokenBias("", low=0.0, high=1.0, max_num=0), {5: 1}, "name may hold up to 0 entries"),
        (TokenBias("", low=0.0, high=1.0, max_num=1), {5: 2}, "name must be in [0, 1], got 2"),
        (TokenBias("", low=0.0, high=1.0, max_num=1), {-1: 1}, "name must be at least 0, got -1"),
    ],
)
def test_an_error_names_the_parameter_and_its_bound(param, value, message):
    with pytest.raises(InvalidRequestError) as raised:
        param.check("name", value)
    assert str(raised.value).startswith(message)
    assert raised.value.param == "name"


def test_a_long_value_is_cut_in_the_error():
    with pytest.raises(InvalidRequestError) as raised:
        Integer("", low=0).check("name", "x" * 10_000)
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize(
    ("param", "words"),
    [
        (Integer("", low=1), "an integer at least 1"),
        (Integer("", low=1, high=3), "an integer between 1 and 3"),
        (Number("", low=0.0, high=1.0, low_open=True), "a number in (0, 1]"),
        (Flag(""), "true or false"),
        (
            Strings("", max_num=2, max_len=3),
            "a string, or a list of up to 2, of up to 3 characters",
        ),
        (TokenIds("", max_num=2), "a list of up to 2 token ids"),
        (
            TokenBias("", low=-1.0, high=1.0, max_num=2),
            "a mapping of up to 2 token ids to numbers in [-1, 1]",
        ),
    ],
)
def test_what_is_accepted_in_words(param, words):
    assert param.accepts == words
