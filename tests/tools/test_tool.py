from __future__ import annotations

from typing import Any

import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.tools.tool import MAX_DEPTH, MAX_TOOLS, read_tools
from tests.tools.parsing import tool


def test_a_declaration_is_canonical_whatever_the_order_of_its_keys() -> None:
    (one,) = read_tools([tool("f", b={"type": "string", "description": "B"}, a={})])
    assert one.json == (
        '{"type": "function", "function": {"name": "f", "parameters": {"type": "object", '
        '"properties": {"a": {}, "b": {"type": "string", "description": "B"}}}}}'
    )
    assert list(one.parameters) == ["b", "a"]


def test_what_is_not_for_the_model_is_left_out() -> None:
    declared: dict[str, Any] = tool("f")
    declared["cache_control"] = {"type": "ephemeral"}
    declared["function"] |= {"strict": True, "description": None}
    (one,) = read_tools([declared])
    assert one.is_strict
    assert (one.definition, one.json) == (read_tools([tool("f")])[0].definition, one.json)


def test_no_tools_are_none() -> None:
    assert read_tools(None) == read_tools([]) == ()


def test_as_many_tools_as_the_limit_are_read() -> None:
    assert len(read_tools([tool(f"t{i}") for i in range(MAX_TOOLS)])) == MAX_TOOLS


def test_deep_schemas_are_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(MAX_DEPTH):
        schema = {"items": schema}
    with pytest.raises(InvalidRequestError, match="nested deeper"):
        read_tools([tool("f", x=schema)])


@pytest.mark.parametrize("field", ["description", "parameters", "strict"])
def test_fields_of_the_wrong_type_are_named(field: str) -> None:
    declared = tool("f")
    declared["function"][field] = 3
    with pytest.raises(InvalidRequestError) as error:
        read_tools([declared])
    assert error.value.param == f"tools[0].function.{field}"


def test_references_to_definitions_are_resolved() -> None:
    city = {"type": "string", "enum": ["Paris"]}
    declared = tool("f", a={"$ref": "#/$defs/City", "description": "A"}, b={"$ref": "#/$defs/B"})
    declared["function"]["parameters"]["$defs"] = {"City": city, "B": {"$ref": "#/$defs/B"}}
    (one,) = read_tools([declared])
    assert one.parameters["a"] == {**city, "description": "A"}
    assert one.parameters["b"] == {"$ref": "#/$defs/B"}  # a circle


@pytest.mark.parametrize("is_circle", [False, True])
def test_definitions_are_repeated_up_to_a_limit(is_circle: bool) -> None:
    keys = dict.fromkeys(map(str, range(500)), 1)
    definitions = {"a": {**keys, **({"$ref": "#/$defs/a"} if is_circle else {})}}
    num = 10 if is_circle else 200
    declared = tool("f", **{f"p{i}": {"$ref": "#/$defs/a"} for i in range(num)})
    declared["function"]["parameters"]["$defs"] = definitions
    with pytest.raises(InvalidRequestError, match="more than 65536 keys") as raised:
        read_tools([declared])
    assert raised.value.param == "tools[0].function.parameters"
