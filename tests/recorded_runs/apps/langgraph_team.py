"""LangGraph: a planner, a coder and a tester side by side, a reviewer that waits for both, and a
router that sends the code back once before a writer ends the run. Seven calls a run.

    python -m tests.recorded_runs.apps.langgraph_team URL TASK...
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

from tests.recorded_runs.apps.concurrent_runs import run_all

HOUSE_RULES = (
    "You belong to a small team that maintains a Python package for the staff of a town library. "
    "Answer briefly and in plain English. Use the standard library where it is enough. "
)
ROLES = {
    "planner": "You are the planner. Split the task into steps for a programmer.",
    "coder": "You are the coder. Write one Python function that follows the plan.",
    "tester": "You are the tester. List inputs that could break a function made by the plan.",
    "reviewer": "You are the reviewer. Say what is wrong with the code, given the test inputs.",
    "fixer": "You are the fixer. Write the function again and mend what the review names.",
    "writer": "You are the writer. Describe the function to its users in two sentences.",
}
MAX_TOKENS = {"planner": 48, "coder": 60, "tester": 40, "reviewer": 36, "fixer": 60, "writer": 40}


class State(TypedDict, total=False):
    task: str
    plan: str
    code: str
    inputs: str
    review: str
    num_reviews: int
    text: str


def build(url: str, run: str) -> Any:
    """Return the compiled graph of a run, whose nodes call the server by URLs of their own."""

    def ask(agent: str, prompt: str) -> str:
        model = ChatOpenAI(
            base_url=f"{url}/{run}/{agent}/v1",
            api_key="none",
            model="smollm2-135m",
            temperature=0,
            max_tokens=MAX_TOKENS[agent],
            max_retries=0,
        )
        return str(model.invoke([("system", HOUSE_RULES + ROLES[agent]), ("user", prompt)]).content)

    def planner(state: State) -> State:
        return {"plan": ask("planner", f"Task: {state['task']}")}

    def coder(state: State) -> State:
        prompt = f"Task: {state['task']}\n\nPlan:\n{state['plan']}\n\nWrite the function."
        return {"code": ask("coder", prompt)}

    def tester(state: State) -> State:
        return {"inputs": ask("tester", f"The plan was:\n{state['plan']}")}

    def reviewer(state: State) -> State:
        prompt = f"Code:\n{state['code']}\n\nTest inputs:\n{state['inputs']}"
        review = ask("reviewer", prompt)
        return {"review": review, "num_reviews": state.get("num_reviews", 0) + 1}

    def fixer(state: State) -> State:
        prompt = f"```python\n{state['code'].strip()}\n```\nReview: {state['review'].strip()}"
        return {"code": ask("fixer", prompt)}

    def writer(state: State) -> State:
        prompt = f"The team was asked to: {state['task']}\nIts function:\n{state['code']}"
        return {"text": ask("writer", prompt)}

    def route(state: State) -> Literal["fixer", "writer"]:
        return "fixer" if state["num_reviews"] < 2 else "writer"

    graph = StateGraph(State)
    for node in (planner, coder, tester, reviewer, fixer, writer):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "coder")
    graph.add_edge("planner", "tester")
    graph.add_edge(["coder", "tester"], "reviewer")
    graph.add_conditional_edges("reviewer", route)
    graph.add_edge("fixer", "reviewer")
    graph.add_edge("writer", END)
    return graph.compile()


if __name__ == "__main__":
    run_all(build)
