"""AutoGen: a GraphFlow with fan-out and join, and a group whose next speaker the model selects.

    python -m tests.recorded_runs.apps.autogen_teams URL TASK...

The first half of the tasks goes to the graph, the second to the group.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from autogen_agentchat.agents import AssistantAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import DiGraphBuilder, GraphFlow, SelectorGroupChat
from autogen_ext.models.openai import OpenAIChatCompletionClient

MODEL_INFO = {
    "vision": False,
    "function_calling": True,
    "json_output": True,
    "structured_output": True,
    "family": "unknown",
}
CRAFTS = {
    "surveyor": "You inspect old houses. Name two things that the owner should know.",
    "carpenter": "You are a carpenter. Tell the owner what you will build, and of which wood.",
    "painter": "You are a painter. Tell the owner which colours you will use, and why.",
    "foreman": "You are the foreman. Say who works on the first day and who on the second.",
    "clerk": "You write letters. Write to the owner, in two sentences, what the craftsmen said.",
}


def build(url: str, run: str, kind: str) -> Any:
    """Return the team of a run, whose agents call the server by URLs of their own."""

    def client(agent: str, max_tokens: int) -> OpenAIChatCompletionClient:
        return OpenAIChatCompletionClient(
            model="smollm2-135m",
            base_url=f"{url}/{run}/{agent}/v1",
            api_key="none",
            max_tokens=max_tokens,
            temperature=0,
            max_retries=0,
            model_info=MODEL_INFO,
        )

    def member(name: str) -> AssistantAgent:
        text = CRAFTS[name]
        return AssistantAgent(name, client(name, 44), system_message=text, description=text)

    surveyor, carpenter, painter, foreman, clerk = map(member, CRAFTS)
    if kind == "group":
        return SelectorGroupChat(
            [surveyor, carpenter, painter],
            client("selector", 24),
            max_selector_attempts=1,
            termination_condition=MaxMessageTermination(4),
        )
    graph = DiGraphBuilder()
    for one in (surveyor, carpenter, painter, foreman, clerk):
        graph.add_node(one)
    for before, after in (
        (surveyor, carpenter),
        (surveyor, painter),
        (carpenter, foreman),
        (painter, foreman),
        (foreman, clerk),
    ):
        graph.add_edge(before, after)
    return GraphFlow([surveyor, carpenter, painter, foreman, clerk], graph=graph.build())


async def main() -> None:
    """Run the teams, all at the same time."""
    url, *tasks = sys.argv[1:]
    kinds = ["graph"] * (len(tasks) // 2) + ["group"] * (len(tasks) - len(tasks) // 2)
    await asyncio.gather(
        *(
            build(url, f"{kind}-{number}", kind).run(task=task)
            for number, (kind, task) in enumerate(zip(kinds, tasks, strict=True))
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
