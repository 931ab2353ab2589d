"""What a caller may ask for."""

import json

import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.grammar.spec import MAX_GRAMMAR_CHARS, StructuredOutputsParams


def nested(depth):
    schema = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def test_a_schema_is_kept_as_text_in_the_order_of_its_properties():
    schema = {"properties": {"b": {}, "a": {"const": "é"}}}
    for given in (schema, json.dumps(schema)):
        text = StructuredOutputsParams(json=given).json
        assert text == '{"properties": {"b": {}, "a": {"const": "é"}}}'


def test_equal_requests_are_equal_whatever_field_asked():
    one = StructuredOutputsParams(choice=["a", "b"], param="guided_choice")
    assert one == StructuredOutputsParams(choice=("a", "b"))
    assert hash(one) == hash(StructuredOutputsParams(choice=("a", "b")))


def test_null_and_false_fields_of_a_mapping_are_absent():
    given = {"json": None, "regex": "a+", "json_object": False, "disable_fallback": False}
    assert StructuredOutputsParams.of_mapping(given) == StructuredOutputsParams(regex="a+")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one of json, regex, choice, grammar, json_object, got none"),
        ({"json_object": False}, "got none"),
        ({"regex": "a", "choice": ["a"]}, "got regex and choice"),
        ({"json": "{"}, "no JSON"),
        ({"json": "[" * 100_000}, "no JSON"),
        ({"json": nested(100_000)}, "no JSON"),
        ({"json": {"const": float("nan")}}, "no JSON"),
        ({"json": {"const": {1}}}, "no JSON"),
        ({"json": 5}, "must be an object"),
        ({"json": "true"}, "must be an object"),
        ({"json": {"const": "x" * MAX_GRAMMAR_CHARS}}, "the limit is"),
        ({"json": " " * MAX_GRAMMAR_CHARS + "{}"}, "the limit is"),
        ({"regex": 5}, "must be a text"),
        ({"regex": "a" * (MAX_GRAMMAR_CHARS + 1)}, "the limit is"),
        ({"regex": "\ud800"}, "characters that are no text"),
        ({"grammar": ["a"]}, "must be a text"),
        ({"choice": []}, "a list of texts"),
        ({"choice": "ab"}, "a list of texts"),
        ({"choice": ["a", 1]}, "a list of texts"),
        ({"choice": ["a", ""]}, "a list of texts"),
        ({"choice": ["x" * MAX_GRAMMAR_CHARS, "y"]}, "the limit is"),
        ({"json_object": "yes"}, "true or false"),
    ],
    ids=range(22),
)
def test_an_invalid_request_names_its_field(fields, message):
    with pytest.raises(InvalidRequestError, match=message) as caught:
        StructuredOutputsParams(**fields, param="mine")
    assert caught.value.param == "mine"
    assert len(str(caught.value)) < 1000


def test_an_unknown_field_is_refused_by_name():
    with pytest.raises(InvalidRequestError, match="whitespace_pattern of it is not supported"):
        StructuredOutputsParams.of_mapping({"regex": "a", "whitespace_pattern": " "}, "it")


@pytest.mark.parametrize(
    "fields", [{"regex": "a"}, {"choice": ["a"]}, {"json": "{}"}, {"grammar": "a"}]
)
def test_the_estimate_of_memory_grows_with_the_text(fields):
    name, value = next(iter(fields.items()))
    longer = '{"title": "a title"}' if name == "json" else value * 10
    small, large = (StructuredOutputsParams(**{name: text}) for text in (value, longer))
    least = StructuredOutputsParams(json_object=True)
    assert least.num_compiled_bytes < small.num_compiled_bytes < large.num_compiled_bytes
