from __future__ import annotations

from typing import Any

import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.serve.errors import ApiError
from kvflow_jax.serve.responses.schema import MAX_REPEATED_CHARS, ResponsesRequest

SCHEMA = {"type": "object", "properties": {}}


def chat_of(**fields: Any) -> Any:
    chat, _ = ResponsesRequest(input="hi", **fields).to_chat()
    return chat


def test_fields_of_the_chat_route_pass() -> None:
    chat = chat_of(temperature=0.5, top_k=4, seed=1, user="u", priority=2, max_tokens=9)
    assert (chat.temperature, chat.top_k, chat.seed) == (0.5, 4, 1)
    assert (chat.user, chat.priority, chat.token_limit) == ("u", 2, 9)
    assert chat_of(max_tokens=9, max_output_tokens=8).token_limit == 8
    chat = chat_of(response_format={"type": "json_object"})
    assert chat.sampling_params()[0].structured_outputs is not None


@pytest.mark.parametrize("field", ["n", "echo", "background", "conversation", "prompt"])
def test_fields_that_would_change_the_answer_are_refused(field: str) -> None:
    value = {"n": 2}.get(field, True)
    with pytest.raises(InvalidRequestError, match=f"^{field} is not supported") as raised:
        chat_of(**{field: value})
    assert raised.value.param == field


def test_a_choice_of_a_tool_without_tools_reaches_the_chat_route() -> None:
    assert chat_of(tool_choice="required").tool_choice == "required"
    hosted = [{"type": "web_search"}]
    assert chat_of(tool_choice="required", tools=hosted).tool_choice is None


@pytest.mark.parametrize(
    ("text_format", "expected"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, StructuredOutputsParams(json_object=True)),
        (
            {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True},
            StructuredOutputsParams(json=SCHEMA),
        ),
    ],
)
def test_the_format_of_the_text_is_a_constraint(text_format: Any, expected: Any) -> None:
    chat = chat_of(text={"format": text_format, "verbosity": "low"})
    (params,) = chat.sampling_params()
    assert params.structured_outputs == expected
    assert expected is None or params.structured_outputs.param == "text.format"


@pytest.mark.parametrize("text_format", ["json", {"type": "xml"}, {"type": "json_schema"}])
def test_errors_of_the_format_name_its_own_field(text_format: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"text\.format") as raised:
        chat_of(text={"format": text_format})
    assert raised.value.param == "text.format"


def test_effort_and_logprobs_are_translated() -> None:
    chat = chat_of(
        reasoning={"effort": "none"}, include=["message.output_text.logprobs"], top_logprobs=3
    )
    assert chat.reasoning_fields.effort == "none"
    assert (chat.logprobs, chat.top_logprobs) == (True, 3)
    assert chat_of(top_logprobs=3).logprobs is None


@pytest.mark.parametrize(
    "repeated",
    [
        {"metadata": {"a": "x" * MAX_REPEATED_CHARS}},
        {"metadata": {"x" * MAX_REPEATED_CHARS: "a"}},
        {"metadata": [0] * MAX_REPEATED_CHARS},
        {"text": {"verbosity": "x" * MAX_REPEATED_CHARS}},
        {"tools": [{"type": "web_search", "name": "x" * MAX_REPEATED_CHARS}]},
        {"safety_identifier": "x" * (MAX_REPEATED_CHARS + 1)},
    ],
)
def test_what_a_response_repeats_is_bounded(repeated: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="the fields that a response repeats") as raised:
        chat_of(**repeated)
    assert raised.value.status == 413


def test_what_a_response_does_not_repeat_may_be_large() -> None:
    assert chat_of(agent_hints={"step_graph": "x" * (MAX_REPEATED_CHARS + 1)})
