"""pydantic-ai against a scripted server."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.scripted_answers import CALL, OBJECT, OUTPUT_TOOL, TEXT


class City(BaseModel):
    name: str


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel])
def model(base_url: str, request: pytest.FixtureRequest) -> Model:
    return request.param("scripted", provider=OpenAIProvider(base_url=base_url, api_key="none"))


def get_weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


def test_a_tool_is_called_and_its_result_read(model: Model) -> None:
    result = Agent(model, tools=[get_weather]).run_sync(CALL)
    assert result.output == TEXT
    assert any("sunny in Paris" in str(message) for message in result.all_messages())


def test_an_output_type_is_a_tool_that_must_be_called(model: Model) -> None:
    assert Agent(model, output_type=City).run_sync(OUTPUT_TOOL).output == City(name="Paris")


def test_a_native_output_is_a_json_schema(model: Model) -> None:
    agent = Agent(model, output_type=NativeOutput(City))
    assert agent.run_sync(OBJECT).output == City(name="Paris")


def test_a_stream(model: Model) -> None:
    async def run() -> str:
        async with Agent(model).run_stream("hello") as result:
            return "".join([text async for text in result.stream_text(delta=True)])

    assert asyncio.run(run()) == TEXT
