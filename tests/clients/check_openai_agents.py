"""OpenAI's Agents SDK against a scripted server, over both of its APIs."""

from __future__ import annotations

from typing import Any

import pytest
from agents import (
    Agent,
    Model,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.clients.scripted_answers import CALL, HAND_OFF, OBJECT, TEXT, TWO_CALLS

set_tracing_disabled(True)


@function_tool
def get_weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


class City(BaseModel):
    name: str


@pytest.fixture(params=[OpenAIResponsesModel, OpenAIChatCompletionsModel])
def model(base_url: str, request: pytest.FixtureRequest) -> Model:
    client = AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0)
    return request.param(model="scripted", openai_client=client)


def kinds_of(result: Any) -> list[str]:
    return [item.type for item in result.new_items]


def test_a_tool_is_called_and_its_result_read(model: Model) -> None:
    agent = Agent("weather", model=model, tools=[get_weather])
    result = Runner.run_sync(agent, CALL)
    assert kinds_of(result) == ["tool_call_item", "tool_call_output_item", "message_output_item"]
    assert result.new_items[1].output == "sunny in Paris"
    assert result.final_output == TEXT
    assert result.context_wrapper.usage.input_tokens_details.cached_tokens > 0


def test_two_calls_of_one_turn(model: Model) -> None:
    result = Runner.run_sync(Agent("weather", model=model, tools=[get_weather]), TWO_CALLS)
    assert kinds_of(result).count("tool_call_output_item") == 2


def test_a_handoff(model: Model) -> None:
    billing = Agent("billing", model=model)
    triage = Agent("triage", model=model, handoffs=[billing])
    result = Runner.run_sync(triage, HAND_OFF)
    assert result.last_agent is billing
    assert result.final_output == TEXT


def test_an_output_type(model: Model) -> None:
    agent = Agent("geographer", model=model, output_type=City)
    assert Runner.run_sync(agent, OBJECT).final_output == City(name="Paris")


def test_a_session_of_the_client(model: Model) -> None:
    agent, session = Agent("a", model=model), SQLiteSession("s")
    for _ in range(2):
        assert Runner.run_sync(agent, "hello", session=session).final_output == TEXT


def test_a_stream(model: Model) -> None:
    async def run() -> Any:
        result = Runner.run_streamed(Agent("weather", model=model, tools=[get_weather]), CALL)
        kinds = [event.type async for event in result.stream_events()]
        return kinds, result.final_output

    import asyncio

    kinds, output = asyncio.run(run())
    assert "raw_response_event" in kinds
    assert output == TEXT
