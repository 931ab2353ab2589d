"""AutoGen against a scripted server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import Swarm
from autogen_ext.models.openai import OpenAIChatCompletionClient
from pydantic import BaseModel

from tests.clients.scripted_answers import CALL, HAND_OFF, OBJECT


class City(BaseModel):
    name: str


def get_weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


@pytest.fixture
def client(base_url: str) -> OpenAIChatCompletionClient:
    return OpenAIChatCompletionClient(
        model="scripted",
        base_url=base_url,
        api_key="none",
        max_retries=0,
        model_info={
            "vision": False,
            "function_calling": True,
            "json_output": True,
            "structured_output": True,
            "family": "unknown",
        },
    )


def run(team: Any, task: str) -> list[Any]:
    return list(asyncio.run(team.run(task=task)).messages)


def test_a_tool_is_called(client: OpenAIChatCompletionClient) -> None:
    messages = run(AssistantAgent("a", client, tools=[get_weather]), CALL)
    assert messages[-1].content == "sunny in Paris"


def test_a_handoff(client: OpenAIChatCompletionClient) -> None:
    triage = AssistantAgent("triage", client, handoffs=["billing"])
    billing = AssistantAgent("billing", client)
    team = Swarm([triage, billing], termination_condition=MaxMessageTermination(5))
    assert run(team, HAND_OFF)[-1].source == "billing"


def test_structured_output(client: OpenAIChatCompletionClient) -> None:
    messages = run(AssistantAgent("a", client, output_content_type=City), OBJECT)
    assert messages[-1].content == City(name="Paris")
