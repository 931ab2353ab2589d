"""Schemas of the Berkeley Function-Calling Leaderboard."""

import json

import jsonschema
import pytest

from experiments.bench.tool_schemas import sample_tools, to_json_schema


def tool(name, **properties):
    parameters = {"type": "dict", "properties": properties, "required": list(properties)}
    return {"name": name, "description": f"do {name}", "parameters": parameters}


def test_types_of_python_become_those_of_json_schema():
    schema = to_json_schema(
        tool(
            "f",
            a={"type": "float", "default": "dict"},
            b={"type": "tuple", "items": {"type": "dict", "properties": {"c": {"type": "any"}}}},
            d={"type": "string", "enum": ["float"]},
        )
    )
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["properties"] == {
        "a": {"type": "number", "default": "dict"},
        "b": {"type": "array", "items": {"type": "object", "properties": {"c": {}}}},
        "d": {"type": "string", "enum": ["float"]},
    }
    assert (schema["type"], schema["required"]) == ("object", ["a", "b", "d"])


@pytest.mark.parametrize("num_tools", [1, 3, 9])
def test_tools_of_all_files_are_drawn_once_each(tmp_path, num_tools):
    calls = [{"function": [tool("a"), tool("b")]}, {"function": [tool("a")]}, {"question": "?"}]
    (tmp_path / "calls.json").write_text("\n".join(json.dumps(call) for call in calls))
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "api.json").write_text(json.dumps(tool("c", x={"type": "integer"})))
    drawn = sample_tools(tmp_path, num_tools)
    assert len(drawn) == min(num_tools, 3)
    assert {name for name, _, _ in drawn} <= {"a", "b", "c"}
    assert len({name for name, _, _ in drawn}) == len(drawn)
    assert sample_tools(tmp_path, num_tools) == drawn
