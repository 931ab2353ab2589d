"""Sampling parameters: bounds, and errors that name the field."""

import dataclasses
import inspect
import math

import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.requests.sampling_params import PARAMS, SamplingParams


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("temperature", 0.0, 100.0),
        ("min_p", 0.0, 1.0),
        ("repetition_penalty", 0.01, 10.0),
        ("frequency_penalty", -2.0, 2.0),
        ("presence_penalty", -2.0, 2.0),
        ("top_k", 0, 2**31 - 1),
        ("top_n_sigma", 0.0, 100.0),
        ("seed", -(2**63), 2**63 - 1),
        ("logprobs", 0, 20),
        ("prompt_logprobs", 0, 20),
    ],
)
def test_bounds_are_inclusive_and_the_error_names_the_field(name, low, high):
    for value in (low, high):
        assert getattr(SamplingParams(**{name: value}), name) == value
    beyond = 1 if isinstance(low, int) else 0.005
    for value in (low - beyond, high + beyond):
        with pytest.raises(InvalidRequestError, match=name) as raised:
            SamplingParams(**{name: value})
        assert raised.value.param == name


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", 1.5, "an integer"),
        ("max_tokens", True, "an integer"),
        ("min_tokens", -1, "at least 0"),
        ("temperature", math.nan, r"in \[0, 100\]"),
        ("temperature", "hot", "a number"),
        ("temperature", False, "a number"),
        ("top_p", -0.1, r"in \[0, 1\]"),
        ("ignore_eos", 1, "true or false"),
        ("logit_bias", [1], "must map token ids to numbers"),
        ("logit_bias", {"1": 1.0}, "an integer"),
        ("logit_bias", {1: 101.0}, r"in \[-100, 100\]"),
        ("logit_bias", dict.fromkeys(range(1025), 1.0), "up to 1024 entries, got 1025"),
        ("stop", 5, "a string or a list of strings"),
        ("stop", ["a", 5], "a string or a list of strings"),
        ("stop", ["a"] * 129, "up to 128 strings, got 129"),
        ("stop", "a" * 1025, "up to 1024 characters"),
        ("stop_token_ids", 5, "a list of token ids"),
        ("stop_token_ids", [-1], "at least 0"),
        ("stop_token_ids", [1] * 65, "up to 64 ids, got 65"),
    ],
)
def test_invalid_values_raise_an_error_that_names_the_field(name, value, message):
    with pytest.raises(InvalidRequestError, match=message) as raised:
        SamplingParams(**{name: value})
    assert raised.value.param == name


def test_min_tokens_may_not_exceed_max_tokens():
    assert SamplingParams(min_tokens=4, max_tokens=4).min_tokens == 4
    with pytest.raises(InvalidRequestError, match="at most max_tokens, 3, got 4"):
        SamplingParams(min_tokens=4, max_tokens=3)


def test_a_stop_string_may_be_given_alone_and_an_empty_one_is_none():
    assert SamplingParams(stop="END").stop == ("END",)
    assert SamplingParams(stop=["", "END"]).stop == ("END",)
    assert SamplingParams(stop="").stop == ()


def test_a_change_of_the_callers_logit_bias_does_not_change_the_request():
    bias = {1: 2.0}
    params = SamplingParams(logit_bias=bias)
    bias[1] = 3.0
    assert params.logit_bias == {1: 2.0}


def test_sampling_is_greedy_below_the_smallest_temperature():
    assert SamplingParams(temperature=0.0).is_greedy
    assert SamplingParams(temperature=9e-6).is_greedy
    assert not SamplingParams(temperature=1e-5).is_greedy


@pytest.mark.parametrize(
    "change",
    [
        {"logit_bias": {1: 1.0}},
        {"min_tokens": 1},
        {"repetition_penalty": 1.1},
        {"frequency_penalty": 0.1},
        {"presence_penalty": -0.1},
    ],
)
def test_changed_logits_need_sampler_state(change):
    assert SamplingParams(**change).needs_sampler_state
    assert not SamplingParams(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1).needs_sampler_state


def test_help_tells_of_each_parameter_what_it_does_and_accepts():
    text = " ".join(inspect.getdoc(SamplingParams).split())
    for name, param in PARAMS.items():
        assert f" {name}: {param.doc}; {param.accepts}. " in text


def test_no_two_parameters_share_a_field_of_http_bodies():
    names = [param.http_name or name for name, param in PARAMS.items()]
    assert len(set(names)) == len(names) == len(dataclasses.fields(SamplingParams))


def test_a_parameter_is_off_where_none_is_its_default_only():
    assert SamplingParams(max_tokens=None).max_tokens is None
    with pytest.raises(InvalidRequestError, match="must be a number, got None"):
        SamplingParams(temperature=None)


def test_a_copy_shares_what_is_large_and_checks_what_is_new():
    params = SamplingParams(allowed_token_ids=[1, 2], max_tokens=8)
    copy = params.replace(seed=3, min_tokens=2)
    assert copy == SamplingParams(allowed_token_ids=[1, 2], max_tokens=8, seed=3, min_tokens=2)
    assert copy.allowed_token_ids is params.allowed_token_ids
    assert params.seed is None
    with pytest.raises(InvalidRequestError, match="seed"):
        params.replace(seed="x")
    with pytest.raises(InvalidRequestError, match="at most max_tokens"):
        params.replace(min_tokens=9)
    grammar = StructuredOutputsParams(regex="a")
    with pytest.raises(InvalidRequestError, match="each constrain the output"):
        params.replace(structured_outputs=grammar)
