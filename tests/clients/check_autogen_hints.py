"""Hints of AutoGen's teams against a scripted server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import DiGraphBuilder, GraphFlow, RoundRobinGroupChat, Swarm
from autogen_ext.models.openai import OpenAIChatCompletionClient

from kvflow_jax.clients import async_http_client, run
from kvflow_jax.workflow.step_graph import RunState
from kvflow_jax.workflow.workflow import Workflow
from tests.clients.recording import Recording
from tests.clients.scripted_answers import TEXT


class Setting:
    """A model behind a client that sends hints, and what it sends."""

    def __init__(self, base_url: str) -> None:
        self.sent = Recording()
        self.http = async_http_client(event_hooks=self.sent.async_hooks)
        self.client = OpenAIChatCompletionClient(
            model="scripted",
            base_url=base_url,
            api_key="none",
            max_retries=0,
            http_client=self.http,
            model_info={
                "vision": False,
                "function_calling": True,
                "json_output": True,
                "structured_output": True,
                "family": "unknown",
            },
        )

    def agents(self, *names: str) -> list[AssistantAgent]:
        return [AssistantAgent(name, self.client) for name in names]

    def run(self, team: Any) -> list[dict[str, Any]]:
        """Run a team; return the hints of all calls so far."""
        asyncio.run(team.run(task="hello"))
        assert self.sent.statuses == ["applied"] * len(self.sent.hints)
        return [hints for hints in self.sent.hints if hints is not None]


@pytest.fixture
def setting(base_url: str) -> Setting:
    return Setting(base_url)


def test_a_flow_has_the_steps_of_a_graph_written_by_hand(setting: Setting) -> None:
    planner, coder, tester, reviewer, writer = setting.agents(
        "planner", "coder", "tester", "reviewer", "writer"
    )
    builder = DiGraphBuilder()
    for agent in (planner, coder, tester, reviewer, writer):
        builder.add_node(agent)
    builder.add_edge(planner, coder, activation_group="work").add_edge(planner, tester)
    builder.add_edge(coder, reviewer).add_edge(tester, reviewer)
    builder.add_edge(reviewer, coder, condition="never", activation_group="again")
    builder.add_edge(reviewer, writer, condition=TEXT)
    flow = GraphFlow(
        builder.get_participants(),
        graph=builder.build(),
        termination_condition=MaxMessageTermination(10),
    )
    setting.http.bind(flow)
    calls = setting.run(flow)
    agents = [hints["agent_id"] for hints in calls]
    assert sorted(agents) == ["coder", "planner", "reviewer", "tester", "writer"]
    by_hand = (
        Workflow()
        .edge("planner", "coder")
        .edge("planner", "tester")
        .edge("coder", "reviewer")
        .edge("tester", "reviewer")
        .edge("reviewer", "coder", conditional=True)
        .edge("reviewer", "writer", conditional=True)
        .join("reviewer", "all")
        .join("coder", "any")
        .entry("planner")
    )
    (own,) = {str(hints["step_graph"]): hints["step_graph"] for hints in calls}.values()
    states = [RunState(Workflow.from_dict(own).freeze()), RunState(by_hand.freeze())]
    for agent in agents:
        for state in states:
            state.start(agent)
        assert states[0].agent_steps() == states[1].agent_steps()
        for state in states:
            state.finish(agent)
        assert states[0].agent_steps() == states[1].agent_steps()


def test_a_round_robin_is_a_circle_and_a_swarm_hands_off(setting: Setting) -> None:
    team = RoundRobinGroupChat(setting.agents("a", "b"), max_turns=2)
    triage = AssistantAgent("triage", setting.client, handoffs=["billing"])
    swarm = Swarm([triage, *setting.agents("billing")], max_turns=1)
    setting.http.bind(team)
    setting.http.bind(swarm)
    asyncio.run(_run_all(team, swarm))
    assert setting.sent.statuses == ["applied"] * 3
    edges = [
        [(edge["source"], edge["target"]) for edge in hints["step_graph"]["edges"]]
        for hints in setting.sent.hints
        if hints is not None
    ]
    assert edges[0] == edges[1] == [("a", "b"), ("b", "a")]
    assert edges[2] == [("triage", "triage"), ("triage", "billing"), ("billing", "billing")]


async def _run_all(*teams: Any) -> None:
    for team in teams:
        await team.run(task="hello")


def test_a_team_without_a_graph_names_its_agents_and_runs(setting: Setting) -> None:
    team = RoundRobinGroupChat(setting.agents("a", "b"), max_turns=4)
    calls = setting.run(team)
    assert [hints["agent_id"] for hints in calls] == ["a", "b", "a", "b"]
    assert len({hints["workflow_id"] for hints in calls}) == 1
    assert [("session_id" in hints) for hints in calls] == [False, False, True, True]


def test_runs_that_the_program_names(setting: Setting) -> None:
    team = RoundRobinGroupChat(setting.agents("a"), max_turns=1)

    async def run_twice() -> None:
        for name in ("task-1", "task-2"):
            async with run(name):
                await team.run(task="hello")

    asyncio.run(run_twice())
    runs = [hints["workflow_id"] for hints in setting.sent.hints if hints is not None]
    assert runs == ["task-1", "task-2"]
