"""The fields that ask for structured output: each is honoured or refused by name."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from kvflow_jax.grammar.spec import StructuredOutputsParams
from tests.serve.serve_fakes import FakeEngine
from tests.serve.serve_requests import CHAT, HELLO, error_of

COMPLETIONS = "/v1/completions"

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
JSON = StructuredOutputsParams(json=SCHEMA)
ANY_OBJECT = StructuredOutputsParams(json_object=True)
REGEX = StructuredOutputsParams(regex="a+")
CHOICE = StructuredOutputsParams(choice=["a", "b"])
GRAMMAR = StructuredOutputsParams(grammar='root ::= "a"')

HONOURED: list[tuple[str, Any, StructuredOutputsParams | None]] = [
    ("response_format", {"type": "text"}, None),
    ("response_format", {"type": "json_object"}, ANY_OBJECT),
    ("response_format", {"type": "json_object", "schema": SCHEMA}, JSON),
    ("response_format", {"type": "json_schema", "schema": SCHEMA}, JSON),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
        JSON,
    ),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
        JSON,
    ),
    ("guided_json", SCHEMA, JSON),
    ("guided_json", '{"type": "object", "properties": {"a": {"type": "integer"}}}', JSON),
    ("guided_regex", "a+", REGEX),
    ("guided_choice", ["a", "b"], CHOICE),
    ("guided_grammar", 'root ::= "a"', GRAMMAR),
    ("structured_outputs", {}, None),
    ("structured_outputs", {"json": None, "json_object": False}, None),
    ("structured_outputs", {"json": SCHEMA}, JSON),
    ("structured_outputs", {"regex": "a+", "choice": None}, REGEX),
    ("structured_outputs", {"choice": ["a", "b"]}, CHOICE),
    ("structured_outputs", {"grammar": 'root ::= "a"'}, GRAMMAR),
    ("structured_outputs", {"json_object": True}, ANY_OBJECT),
    ("json_schema", SCHEMA, JSON),
    ("json_schema", '{"type": "object", "properties": {"a": {"type": "integer"}}}', JSON),
    ("regex", "a+", REGEX),
    ("ebnf", 'root ::= "a"', GRAMMAR),
    ("grammar", 'root ::= "a"', GRAMMAR),
    ("format", "", None),
    ("format", "json", ANY_OBJECT),
    ("format", SCHEMA, JSON),
]
REFUSED: list[tuple[str, Any]] = [
    ("response_format", {"type": "json_schema"}),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "n"}}),
    ("response_format", {"type": "json_schema", "json_schema": {"schema": "x"}}),
    ("response_format", {"type": "structural_tag", "format": {}}),
    ("response_format", {"type": "regex", "value": "a"}),
    ("response_format", "json"),
    ("response_format", {}),
    ("guided_json", [1]),
    ("guided_regex", 5),
    ("guided_regex", "("),
    ("guided_choice", "a"),
    ("guided_choice", []),
    ("guided_grammar", {}),
    ("guided_whitespace_pattern", " "),
    ("structured_outputs", "json"),
    ("structured_outputs", {"regex": "a", "choice": ["a"]}),
    ("structured_outputs", {"structural_tag": "{}"}),
    ("structured_outputs", {"regex": "a", "disable_any_whitespace": True}),
    ("json_schema", 1),
    ("regex", ["a"]),
    ("ebnf", 1),
    ("grammar", 1),
    ("grammar_lazy", True),
    ("format", "xml"),
    ("structural_tag", "{}"),
]


def body_of(route: str, **fields: Any) -> dict[str, Any]:
    asked = {"messages": HELLO} if route == CHAT else {"prompt": "Hi"}
    return {**asked, "max_tokens": 8, **fields}


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("field", "value", "expected"), HONOURED, ids=str)
def test_a_field_reaches_every_choice_as_a_compiled_grammar(
    http: httpx.Client,
    engine: FakeEngine,
    route: str,
    field: str,
    value: Any,
    expected: StructuredOutputsParams | None,
) -> None:
    response = http.post(route, json=body_of(route, n=2, **{field: value}))
    assert response.status_code == 200, response.text
    specs = [request.spec for request in engine.requests.values()]
    assert [spec.params.structured_outputs for spec in specs] == [expected] * 2
    assert [spec.grammar for spec in specs] == [expected] * 2


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("field", "value"), REFUSED, ids=str)
def test_an_invalid_field_is_refused_by_name(
    http: httpx.Client, engine: FakeEngine, route: str, field: str, value: Any
) -> None:
    error = error_of(http.post(route, json=body_of(route, **{field: value})), 400)
    assert error["param"] == field
    assert not engine.requests


def test_two_fields_at_once_are_refused(http: httpx.Client) -> None:
    fields = {"response_format": {"type": "json_object"}, "guided_regex": "a"}
    error = error_of(http.post(CHAT, json=body_of(CHAT, **fields)), 400)
    assert "response_format and guided_regex" in error["message"]


def test_a_field_that_asks_for_nothing_is_no_second_one(http: httpx.Client) -> None:
    fields = {"response_format": {"type": "text"}, "guided_regex": "a", "format": None}
    assert http.post(CHAT, json=body_of(CHAT, **fields)).status_code == 200
