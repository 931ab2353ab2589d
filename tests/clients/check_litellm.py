"""LiteLLM against a scripted server."""

from __future__ import annotations

import os
from typing import Any

import pytest
from pydantic import BaseModel

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no list of prices from the network

import litellm

from tests.clients.scripted_answers import CALL, OBJECT, TEXT

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


class City(BaseModel):
    name: str


@pytest.fixture(params=["openai", "hosted_vllm"])
def server(base_url: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"model": f"{request.param}/scripted", "api_base": base_url, "api_key": "none"}


def complete(server: dict[str, Any], text: str, **fields: Any) -> Any:
    messages = [{"role": "user", "content": text}]
    return litellm.completion(messages=messages, num_retries=0, **server, **fields)


def test_a_text_streamed(server: dict[str, Any]) -> None:
    chunks = list(complete(server, "hello", stream=True, stream_options={"include_usage": True}))
    assert "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices) == TEXT
    assert chunks[-1].usage.prompt_tokens > 0


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_call(server: dict[str, Any], choice: str) -> None:
    answer = complete(server, CALL, tools=[TOOL], tool_choice=choice)
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Paris"}')


def test_a_schema(server: dict[str, Any]) -> None:
    answer = complete(server, OBJECT, response_format=City)
    assert City.model_validate_json(answer.choices[0].message.content) == City(name="Paris")


def test_a_prompt_over_the_context_is_known_as_such(server: dict[str, Any]) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        complete(server, "word " * 3000)


def test_the_responses_api(server: dict[str, Any]) -> None:
    assert litellm.responses(input="hello", **server).output_text == TEXT
