"""An app of LangGraph: a planner, three researchers, a writer, and a reviewer who sends back.

It is the child of ``three_ways``, in an interpreter that has LangGraph. The design is that of
tutorials of LangGraph: researchers run side by side, the writer waits for all of them, and a
router leads from the reviewer back to the planner or to the end. Only the argument
``http_client`` differs between an app with hints and one without.
"""

from __future__ import annotations

import argparse
import json
import operator
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal, TypedDict

from kvflow_jax.clients import http_client

PACKAGES = ("langgraph", "langchain-openai")
NUM_ROUNDS = 3  # of a run, from planner to reviewer
NUM_ANSWER_TOKENS = 16
RESEARCHERS = ("historian", "scientist", "economist")
# Whose last answers are in the prompt of an agent.
READS: dict[str, tuple[str, ...]] = {
    "planner": ("reviewer",),
    **dict.fromkeys(RESEARCHERS, ("planner",)),
    "writer": RESEARCHERS,
    "reviewer": ("writer",),
}


class State(TypedDict):
    """What the agents of a run share.

    Attributes:
        answers: the last answer of each agent.
        num_rounds: how often the planner has been called.
    """

    question: str
    answers: Annotated[dict[str, str], operator.or_]
    num_rounds: Annotated[int, operator.add]


@dataclass(frozen=True)
class Call:
    """A call of an agent: the tokens of its prompt, and those of them that the cache had."""

    run: int
    agent: str
    prompt_tokens: int
    cached_tokens: int


def main() -> int:
    """Print JSON: versions of packages, or the calls of runs and their time."""
    options = parser().parse_args()
    if options.versions:
        print(json.dumps({"versions": versions()}))
        return 0
    # Frameworks are imported and the app is built before the time starts.
    calls: list[Call] = []
    team = Team(options, calls)
    begin = time.perf_counter()
    try:
        for run in range(options.runs):
            team.run(run)
    except Exception as error:
        # A traceback would end with LangGraph's notes of where, instead of what failed.
        raise SystemExit(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "calls": [asdict(call) for call in calls]}))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags that ``three_ways`` gives."""
    flags = argparse.ArgumentParser()
    flags.add_argument("--versions", action="store_true", help="print those of PACKAGES, no runs")
    flags.add_argument("--url", help="of the server")
    flags.add_argument("--model")
    flags.add_argument("--runs", type=int)
    flags.add_argument("--rules", type=int, help="of each system prompt, about 16 tokens each")
    flags.add_argument("--hints", action="store_true")
    return flags


def versions() -> dict[str, str | None]:
    """Return the version of each package that the app needs; None where it is missing."""
    found: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


class Team:
    """The compiled app.

    Args:
        options: as ``parser`` returns them.
        calls: to which each call is added once it is answered.
    """

    def __init__(self, options: argparse.Namespace, calls: list[Call]) -> None:
        from langchain_openai import ChatOpenAI

        client = http_client() if options.hints else None
        self._llm = ChatOpenAI(
            base_url=f"{options.url}/v1",
            api_key="none",
            model=options.model,
            temperature=0,
            max_tokens=NUM_ANSWER_TOKENS,
            max_retries=0,
            http_client=client,  # the one argument
        )
        self._num_rules = options.rules
        self._calls = calls
        self._run = 0
        self._app = self._compiled()
        if client is not None:
            client.bind(self._app)

    def run(self, number: int) -> None:
        """Answer a question."""
        self._run = number
        question = f"Question {number}: how did town {number} grow?"
        self._app.invoke({"question": question, "answers": {}, "num_rounds": 0})

    def _compiled(self) -> Any:
        from langgraph.graph import START, StateGraph

        graph = StateGraph(State)
        for name in READS:
            graph.add_node(name, self._agent(name))
        graph.add_edge(START, "planner")
        for name in RESEARCHERS:
            graph.add_edge("planner", name)
        graph.add_edge([*RESEARCHERS], "writer")  # waits for all
        graph.add_edge("writer", "reviewer")
        graph.add_conditional_edges("reviewer", after_review)
        return graph.compile()

    def _agent(self, name: str) -> Callable[[State], dict[str, Any]]:
        """Return a node: a call with the agent's own system prompt."""
        rule = f" Rule {{}} of the {name} is to keep to the work of the {name}."
        system = f"You are the {name}." + "".join(map(rule.format, range(self._num_rules)))

        def call(state: State) -> dict[str, Any]:
            answers = state["answers"]
            read = [answers[other] for other in READS[name] if other in answers]
            user = "\n".join([state["question"], *read])
            reply = self._llm.invoke([("system", system), ("user", user)])
            usage = reply.usage_metadata
            cached = usage.get("input_token_details", {}).get("cache_read") or 0
            self._calls.append(Call(self._run, name, usage["input_tokens"], cached))
            return {"answers": {name: reply.text}, "num_rounds": int(name == "planner")}

        return call


def after_review(state: State) -> Literal["planner", "__end__"]:
    """Send back until all rounds are done."""
    return "planner" if state["num_rounds"] < NUM_ROUNDS else "__end__"


if __name__ == "__main__":
    raise SystemExit(main())
