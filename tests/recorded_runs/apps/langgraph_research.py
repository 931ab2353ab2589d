"""LangGraph: a lead splits a question, researchers get a line of its answer each (``Send``), one
that keeps its messages calls a tool, and an editor joins what they found. Six calls a run.

    python -m tests.recorded_runs.apps.langgraph_research URL TASK...
"""

from __future__ import annotations

import operator
from typing import Annotated, Any, Literal, TypedDict

from langchain_core.messages import AnyMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from tests.recorded_runs.apps.concurrent_runs import run_all

NUM_RESEARCHERS = 2
LEAD = (
    "You lead researchers. Write two questions that help to answer the question, one on each line."
)
RESEARCHER = "You are a researcher. Answer the part of the question that you are given, briefly."
LIBRARIAN = "You are a librarian. Look up the shelf of a subject, then say what stands on it."
EDITOR = "You are the editor. Join the notes of the researchers into one short paragraph."


@tool
def find_shelf(subject: Literal["science", "history", "crafts"]) -> str:
    """Return where the books about a subject stand."""
    return f"Books about {subject} stand on the second floor, third row."


class State(TypedDict, total=False):
    task: str
    parts: list[str]
    notes: Annotated[list[str], operator.add]
    messages: list[AnyMessage]
    text: str


def build(url: str, run: str) -> Any:
    """Return the compiled graph of a run, whose nodes call the server by URLs of their own."""

    def model(agent: str, max_tokens: int) -> ChatOpenAI:
        return ChatOpenAI(
            base_url=f"{url}/{run}/{agent}/v1",
            api_key="none",
            model="smollm2-135m",
            temperature=0,
            max_tokens=max_tokens,
            max_retries=0,
        )

    def lead(state: State) -> State:
        answer = model("lead", 60).invoke([("system", LEAD), ("user", state["task"])])
        lines = [line.strip(" -*") for line in str(answer.content).splitlines()]
        return {"parts": [line for line in lines if line]}

    def share_out(state: State) -> list[Send]:
        parts = state["parts"][:NUM_RESEARCHERS]
        sends = [Send("researcher", {"task": part}) for part in parts]
        return [*sends, Send("librarian", {"task": state["task"]})]

    def researcher(state: State) -> State:
        messages = [("system", RESEARCHER), ("user", state["task"])]
        return {"notes": [str(model("researcher", 40).invoke(messages).content)]}

    def librarian(state: State) -> State:
        messages: list[AnyMessage] = [SystemMessage(LIBRARIAN), HumanMessage(state["task"])]
        calling = model("librarian", 200).bind_tools([find_shelf], tool_choice="any")
        answer = calling.invoke(messages)
        messages.append(answer)
        for call in answer.tool_calls:
            found = find_shelf.invoke(call["args"])
            messages.append(ToolMessage(found, tool_call_id=call["id"]))
        answer = (
            model("librarian", 40).bind_tools([find_shelf], tool_choice="none").invoke(messages)
        )
        return {"notes": [str(answer.content)]}

    def editor(state: State) -> State:
        prompt = "\n\n".join(f"Note {n}: {note}" for n, note in enumerate(state["notes"], 1))
        answer = model("editor", 48).invoke([("system", EDITOR), ("user", prompt)])
        return {"text": str(answer.content)}

    graph = StateGraph(State)
    for node in (lead, researcher, librarian, editor):
        graph.add_node(node.__name__, node)
    graph.add_edge(START, "lead")
    graph.add_conditional_edges("lead", share_out, ["researcher", "librarian"])
    graph.add_edge(["researcher", "librarian"], "editor")
    graph.add_edge("editor", END)
    return graph.compile()


if __name__ == "__main__":
    run_all(build)
