from __future__ import annotations

import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.serve.responses.tools import read_tool_choice, read_tools

F = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}


def test_functions_are_read_and_others_skipped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    tools, names = read_tools([F, {"type": "web_search"}, {"type": "local_shell"}])
    function = {"name": "f", "parameters": {"type": "object"}, "strict": False}
    assert tools == [{"type": "function", "function": function}]
    assert names.sent_fields("f") == {"name": "f"}
    assert [record.message for record in caplog.records] == [
        "skipped tools that are no functions: local_shell, web_search"
    ]


@pytest.mark.parametrize(
    ("namespace", "flat"), [("agents", "agents__f"), ("mcp__files__", "mcp__files__f")]
)
def test_a_tool_of_a_namespace_has_a_flat_name(namespace: str, flat: str) -> None:
    tools, names = read_tools(
        [F, {"type": "namespace", "name": namespace, "tools": [F, {"type": "custom"}]}]
    )
    assert [tool["function"]["name"] for tool in tools] == ["f", flat]
    assert names.sent_fields(flat) == {"name": "f", "namespace": namespace}
    assert names.sent_fields("unknown") == {"name": "unknown"}
    assert names.of_call(namespace, "f") == flat
    # Of a tool that the client no longer sends.
    assert names.of_call("gone", "f") == "gone__f"


def test_a_choice_is_translated() -> None:
    _, names = read_tools([F])
    assert read_tool_choice("required", names) == "required"
    assert read_tool_choice(None, names) is None
    assert read_tool_choice({"type": "function", "name": "f"}, names) == {
        "type": "function",
        "function": {"name": "f"},
    }
    with pytest.raises(InvalidRequestError, match="tool_choice"):
        read_tool_choice({"type": "web_search"}, names)


@pytest.mark.parametrize(
    "tool", [{"type": "namespace"}, {"type": "namespace", "name": "n", "tools": 7}]
)
def test_a_bad_namespace_is_refused(tool: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError, match=r"tools\[0\]"):
        read_tools([tool])
