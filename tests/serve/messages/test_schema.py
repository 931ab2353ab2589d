from __future__ import annotations

from typing import Any

import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.serve.messages.schema import MessagesRequest

SCHEMA = {"type": "object", "properties": {}}
TOOL = {"name": "f", "input_schema": SCHEMA, "strict": True, "cache_control": {"type": "x"}}


def chat_of(**fields: Any) -> Any:
    body = {"max_tokens": 8, "messages": [{"role": "user", "content": "hi"}], **fields}
    return MessagesRequest(**body).to_chat()


def test_fields_of_the_chat_route_pass() -> None:
    chat = chat_of(temperature=0.5, top_k=4, top_p=0.9, stop_sequences=["x"])
    assert (chat.temperature, chat.top_k, chat.top_p) == (0.5, 4, 0.9)
    assert (chat.stop, chat.token_limit) == (["x"], 8)
    chat = chat_of(stop="y", reasoning_effort="low", response_format={"type": "json_object"})
    assert (chat.stop, chat.reasoning_effort) == ("y", "low")
    assert chat.sampling_params()[0].structured_outputs is not None


@pytest.mark.parametrize(("field", "value"), [("n", 2), ("echo", True)])
def test_fields_that_would_change_the_answer_are_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"^{field} is not supported"):
        chat_of(**{field: value})


def test_a_last_message_of_the_assistant_is_continued_unless_it_is_empty() -> None:
    user = {"role": "user", "content": "hi"}
    for content in ("", [], [{"type": "redacted_thinking", "data": "x"}]):
        chat = chat_of(messages=[user, {"role": "assistant", "content": content}])
        assert (chat.messages, chat.continue_final_message) == ([user], False)
    assert chat_of(messages=[user, {"role": "assistant", "content": "x"}]).continue_final_message


@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_the_output_format_is_the_response_format(field: str) -> None:
    data: dict[str, Any] = {"type": "json_schema", "schema": SCHEMA}
    chat = chat_of(**{field: {"format": data} if field == "output_config" else data})
    read = chat.model_extra["response_format"]
    assert read == StructuredOutputsParams(json=SCHEMA)
    assert read.param == (field if field == "output_format" else "output_config.format")


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_the_choice_of_a_tool_is_translated(choice: dict[str, Any], expected: Any) -> None:
    chat = chat_of(tools=[TOOL, {"type": "bash_20250124", "name": "bash"}], tool_choice=choice)
    assert chat.tool_choice == expected
    assert chat.parallel_tool_calls is None
    function = {"name": "f", "parameters": SCHEMA, "strict": True}
    assert chat.tools == [{"type": "function", "function": function}]
    for is_serial in (True, False):
        flag = {"disable_parallel_tool_use": is_serial}
        chat = chat_of(tools=[TOOL], tool_choice={**choice, **flag})
        assert chat.parallel_tool_calls is not is_serial


def test_an_unknown_choice_of_a_tool_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="tool_choice"):
        chat_of(tools=[TOOL], tool_choice={"type": "tool"})
    # Without tools too; where all tools are skipped, so is the choice.
    with pytest.raises(InvalidRequestError, match="tool_choice"):
        chat_of(tool_choice={"type": "tool"})
    hosted = [{"type": "web_search_20250305", "name": "web_search"}]
    chat = chat_of(tools=hosted, tool_choice={"type": "tool", "name": "web_search"})
    assert chat.tool_choice is None


def test_thinking_and_effort_are_those_of_a_chat() -> None:
    for kind, is_enabled in (("enabled", True), ("disabled", False), ("adaptive", None)):
        assert chat_of(thinking={"type": kind}).reasoning_fields.is_enabled is is_enabled
    assert chat_of(output_config={"effort": "low"}).reasoning_fields.effort == "low"
