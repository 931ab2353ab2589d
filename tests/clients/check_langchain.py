"""LangChain and LangGraph against a scripted server."""

from __future__ import annotations

import functools
import operator
from typing import Any, Literal

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from tests.clients.scripted_answers import CALL, CITY_TOOL, OBJECT, TEXT, TWO_CALLS


@tool
def get_weather(city: Literal["Paris", "Oslo"]) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


class City(BaseModel):
    name: str


@pytest.fixture(params=[False, True], ids=["chat", "responses"])
def llm(base_url: str, request: pytest.FixtureRequest) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=base_url,
        api_key="none",
        model="scripted",
        max_retries=0,
        use_responses_api=request.param,
    )


def test_a_text_has_usage_with_cached_tokens(llm: ChatOpenAI) -> None:
    answer = llm.invoke("hello")
    assert answer.text == TEXT
    assert answer.usage_metadata["input_token_details"]["cache_read"] >= 0


def test_calls_whole_and_streamed(llm: ChatOpenAI) -> None:
    bound = llm.bind_tools([get_weather])
    streamed: Any = functools.reduce(operator.add, bound.stream(TWO_CALLS))
    for answer in (bound.invoke(TWO_CALLS), streamed):
        assert [call["args"] for call in answer.tool_calls] == [{"city": "Paris"}, {"city": "Oslo"}]
        assert len({call["id"] for call in answer.tool_calls}) == 2


def test_an_agent_calls_its_tool_and_answers(llm: ChatOpenAI) -> None:
    agent = create_agent(llm, [get_weather], system_prompt="Be brief.")
    _, call, result, answer = agent.invoke({"messages": [("user", CALL)]})["messages"]
    assert isinstance(call, AIMessage)
    assert isinstance(result, ToolMessage)
    assert (result.content, answer.text) == ("sunny in Paris", TEXT)


def test_structured_output_by_schema(llm: ChatOpenAI) -> None:
    assert llm.with_structured_output(City).invoke(OBJECT) == City(name="Paris")


def test_structured_output_by_a_tool_that_must_be_called(llm: ChatOpenAI) -> None:
    asked = llm.with_structured_output(City, method="function_calling")
    assert asked.invoke(CITY_TOOL) == City(name="Paris")


def test_an_agent_with_a_response_format(llm: ChatOpenAI) -> None:
    agent = create_agent(llm, [], response_format=City)
    answer = agent.invoke({"messages": [("user", CITY_TOOL)]})
    assert answer["structured_response"] == City(name="Paris")
