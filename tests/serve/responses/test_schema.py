from __future__ import annotations

from typing import Any

import pytest

from kvflow_jax.errors import InvalidRequestError
from kvflow_jax.grammar.spec import StructuredOutputsParams
from kvflow_jax.serve.responses.schema import ResponsesRequest

SCHEMA = {"type": "object", "properties": {}}


def chat_of(**fields: Any) -> Any:
    chat, _ = ResponsesRequest(input="hi", **fields).to_chat()
    return chat


def test_fields_of_the_chat_route_pass() -> None:
    chat = chat_of(temperature=0.5, top_k=4, seed=1, user="u", priority=2, n=3, max_tokens=9)
    assert (chat.temperature, chat.top_k, chat.seed) == (0.5, 4, 1)
    assert (chat.user, chat.priority) == ("u", 2)
    # Fields with another meaning there do not.
    assert (chat.n, chat.token_limit) == (None, None)


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
