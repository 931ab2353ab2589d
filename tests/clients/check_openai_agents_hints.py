"""Hints of OpenAI's Agents SDK against a scripted server, over both of its APIs."""

from __future__ import annotations

import asyncio
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

from kvflow_jax.clients import async_http_client
from tests.clients.recording import Recording
from tests.clients.scripted_answers import ASK_HELPER, CALL, HAND_OFF, TEXT


@function_tool
def get_weather(city: str) -> str:
    """Return the weather of a city."""
    return f"sunny in {city}"


class Setting:
    """A model behind a client that sends hints, and what it sends."""

    def __init__(self, base_url: str, kind: Any) -> None:
        self.sent = Recording()
        self.http = async_http_client(event_hooks=self.sent.async_hooks)
        client = AsyncOpenAI(
            base_url=base_url, api_key="none", max_retries=0, http_client=self.http
        )
        self.model: Model = kind(model="scripted", openai_client=client)

    def agent(self, name: str, **settings: Any) -> Agent:
        return Agent(name, model=self.model, **settings)

    def run(self, start: Agent, prompt: str) -> list[dict[str, Any]]:
        """Run agents; return the hints of all their calls so far."""
        self.http.bind(start)
        assert Runner.run_sync(start, prompt).final_output == TEXT
        assert self.sent.statuses == ["applied"] * len(self.sent.hints)
        return [hints for hints in self.sent.hints if hints is not None]


@pytest.fixture(params=[OpenAIResponsesModel, OpenAIChatCompletionsModel])
def setting(base_url: str, request: pytest.FixtureRequest) -> Setting:
    set_tracing_disabled(True)
    return Setting(base_url, request.param)


def edges_of(hints: dict[str, Any]) -> set[tuple[str, str]]:
    return {(edge["source"], edge["target"]) for edge in hints["step_graph"]["edges"]}


def test_a_handoff(setting: Setting) -> None:
    billing = setting.agent("billing")
    triage = setting.agent("triage", handoffs=[billing])
    billing.handoffs.append(triage)
    triaged, billed = setting.run(triage, HAND_OFF)
    assert [triaged["agent_id"], billed["agent_id"]] == ["triage", "billing"]
    assert triaged["workflow_id"] == billed["workflow_id"]
    assert edges_of(triaged) == {("triage", "billing"), ("billing", "triage")}
    assert triaged["step_graph"]["entries"] == ["triage"]
    again = setting.run(triage, HAND_OFF)[2:]
    assert again[0]["workflow_id"] == again[1]["workflow_id"] != triaged["workflow_id"]


def test_a_handoff_in_a_stream(setting: Setting) -> None:
    triage = setting.agent("triage", handoffs=[setting.agent("billing")])
    setting.http.bind(triage)

    async def run() -> Any:
        result = Runner.run_streamed(triage, HAND_OFF)
        async for _ in result.stream_events():
            pass
        return result.final_output

    assert asyncio.run(run()) == TEXT
    agents = [(hints or {}).get("agent_id") for hints in setting.sent.hints]
    assert agents == ["triage", "billing"]
    assert len({(hints or {}).get("workflow_id") for hints in setting.sent.hints}) == 1


def test_an_agent_as_a_tool_of_another(setting: Setting) -> None:
    helper = setting.agent("helper")
    asking = setting.agent("asking", tools=[helper.as_tool("ask_helper", "Ask.")])
    calls = setting.run(asking, ASK_HELPER)
    assert [hints["agent_id"] for hints in calls] == ["asking", "helper", "asking"]
    assert edges_of(calls[0]) == {("asking", "helper"), ("helper", "asking")}
    assert len({hints["workflow_id"] for hints in calls}) == 1


def test_an_agent_with_tools_continues_its_conversation(setting: Setting) -> None:
    weather = setting.agent("weather", tools=[get_weather])
    first, second = setting.run(weather, CALL)
    assert edges_of(first) == {("weather", "weather")}
    assert "session_id" not in first
    assert second["session_id"].startswith(second["workflow_id"])


def test_a_session_of_the_sdk_goes_on_in_later_runs(setting: Setting) -> None:
    agent, memory = setting.agent("chatting"), SQLiteSession("s")
    for _ in range(3):
        assert Runner.run_sync(agent, "hello", session=memory).final_output == TEXT
    hints = [one for one in setting.sent.hints if one is not None]
    assert len({one["workflow_id"] for one in hints}) == 3
    first, second, third = (one.get("session_id") for one in hints)
    assert first is None
    assert second == third is not None


def test_runs_side_by_side_with_and_without_tracing(setting: Setting) -> None:
    billing = setting.agent("billing")
    triage = setting.agent("triage", handoffs=[billing])
    setting.http.bind(triage)

    async def run() -> None:
        for is_disabled in (True, False):
            set_tracing_disabled(is_disabled)
            await asyncio.gather(*(Runner.run(triage, HAND_OFF) for _ in range(2)))

    asyncio.run(run())
    agents_of: dict[str, list[str]] = {}
    for hints in setting.sent.hints:
        assert hints is not None
        agents_of.setdefault(hints["workflow_id"], []).append(hints["agent_id"])
    assert list(agents_of.values()) == [["triage", "billing"]] * 4
