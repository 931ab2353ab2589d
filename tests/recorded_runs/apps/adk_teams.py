"""Google ADK: agents in sequence with two in parallel, and a loop of an author and a critic.

    python -m tests.recorded_runs.apps.adk_teams URL TASK...

The first half of the tasks goes to the sequence, the second to the loop.
"""

from __future__ import annotations

import asyncio
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no list of prices from the network

from google.adk.agents import BaseAgent, LlmAgent, LoopAgent, ParallelAgent, SequentialAgent
from google.adk.models.lite_llm import LiteLlm
from google.adk.runners import InMemoryRunner
from google.genai import types


def build(url: str, run: str, kind: str) -> BaseAgent:
    """Return the agents of a run, which call the server by URLs of their own."""

    def agent(name: str, instruction: str, max_tokens: int = 44, **more: str) -> LlmAgent:
        model = LiteLlm(
            model="openai/smollm2-135m",
            api_base=f"{url}/{run}/{name}/v1",
            api_key="none",
            max_tokens=max_tokens,
            temperature=0,
        )
        return LlmAgent(name=name, model=model, instruction=instruction, **more)

    if kind == "loop":
        author = agent("author", "You are a poet. Write two new lines of a poem about the subject.")
        critic = agent(
            "critic",
            "You teach poetry. Say what you like about the lines, and one word to change.",
            36,
        )
        return LoopAgent(name="poem", max_iterations=2, sub_agents=[author, critic])
    guide = agent(
        "guide",
        "You are a travel guide. Describe two places that are worth a visit on the trip.",
        output_key="plan",
    )
    driver = agent("driver", "You are a driver. Explain how to travel between the places.")
    cook = agent("cook", "You are a cook. Recommend a dish to eat at each of the places.")
    # Its instruction holds an answer, so that its system prompt differs in each run.
    printer = agent("printer", "You write leaflets. Advertise this trip in two sentences: {plan}")
    both = ParallelAgent(name="both", sub_agents=[driver, cook])
    return SequentialAgent(name="trip", sub_agents=[guide, both, printer])


async def play(root: BaseAgent, task: str) -> None:
    """Run the agents on a task."""
    runner = InMemoryRunner(agent=root, app_name="trips")
    session = await runner.session_service.create_session(app_name="trips", user_id="reader")
    message = types.Content(role="user", parts=[types.Part(text=task)])
    async for _ in runner.run_async(user_id="reader", session_id=session.id, new_message=message):
        pass


async def main() -> None:
    """Run the teams, all at the same time."""
    url, *tasks = sys.argv[1:]
    kinds = ["trip"] * (len(tasks) // 2) + ["loop"] * (len(tasks) - len(tasks) // 2)
    await asyncio.gather(
        *(
            play(build(url, f"{kind}-{number}", kind), task)
            for number, (kind, task) in enumerate(zip(kinds, tasks, strict=True))
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
