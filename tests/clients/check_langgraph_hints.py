"""Hints of LangGraph apps against a scripted server."""

from __future__ import annotations

import asyncio
import itertools
import operator
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypedDict

import httpx2
import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, Send, interrupt

from kvflow_jax.clients import async_http_client, http_client, run
from kvflow_jax.workflow.step_graph import Graph, RunState
from kvflow_jax.workflow.workflow import Workflow
from tests.clients.recording import Recording
from tests.clients.scripted_answers import CALL, TEXT

ROUNDS = 3


class State(TypedDict):
    notes: Annotated[list[str], operator.add]


class Model:
    """A model behind both clients, and what they send."""

    def __init__(self, base_url: str, **settings: Any) -> None:
        self.sent = Recording()
        self.http = http_client(event_hooks=self.sent.sync_hooks)
        self.async_http = async_http_client(event_hooks=self.sent.async_hooks)
        self.llm = ChatOpenAI(
            base_url=base_url,
            api_key="none",
            model="scripted",
            max_retries=0,
            http_client=self.http,
            http_async_client=self.async_http,
            **settings,
        )

    def bind(self, app: Any) -> Any:
        self.http.bind(app)
        return app

    def node(self, name: str) -> Any:
        def call(state: State) -> dict[str, Any]:
            assert self.llm.invoke(f"hello {name}").text == TEXT
            return {"notes": [name]}

        return call

    def async_node(self, name: str) -> Any:
        async def call(state: State) -> dict[str, Any]:
            chunks = [chunk.text async for chunk in self.llm.astream(f"hello {name}")]
            assert "".join(chunks) == TEXT
            return {"notes": [name]}

        return call


@pytest.fixture
def model(base_url: str) -> Iterator[Model]:
    model = Model(base_url)
    with model.http:
        yield model


def team(model: Model, node: Any) -> Any:
    """A planner fans out; a join; a reviewer sends back to the planner, or on to the writer."""

    def route(state: State) -> Literal["planner", "writer"]:
        return "planner" if state["notes"].count("reviewer") < ROUNDS else "writer"

    graph = StateGraph(State)
    for name in ("planner", "coder", "tester", "documenter", "reviewer", "writer"):
        graph.add_node(name, node(name))
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "coder")
    graph.add_edge("planner", "tester")
    graph.add_edge("coder", "documenter")
    graph.add_edge(["documenter", "tester"], "reviewer")
    graph.add_conditional_edges("reviewer", route)
    graph.add_edge("writer", END)
    return model.bind(graph.compile())


BY_HAND = (
    Workflow()
    .edge("planner", "coder")
    .edge("planner", "tester")
    .edge("coder", "documenter")
    .edge("documenter", "reviewer")
    .edge("tester", "reviewer")
    .join("reviewer", "all")
    .edge("reviewer", "planner", conditional=True)
    .edge("reviewer", "writer", conditional=True)
    .entry("planner")
)


def steps_of(graph: Graph, events: list[tuple[str, str | None]]) -> list[dict[str, int]]:
    """Return the steps-to-execution of all agents after each request and each answer."""
    state, steps = RunState(graph), []
    for event, agent in events:
        assert agent is not None
        assert state.start(agent) if event == "start" else state.finish(agent)
        steps.append(state.agent_steps())
    return steps


def check_team(model: Model) -> None:
    hints = [one for one in model.sent.hints if one is not None]
    assert len(hints) == 5 * ROUNDS + 1
    assert model.sent.statuses == ["applied"] * len(hints)
    (graph,) = {str(one["step_graph"]): one["step_graph"] for one in hints}.values()
    own = steps_of(Workflow.from_dict(graph).freeze(), model.sent.events)
    assert own == steps_of(BY_HAND.freeze(), model.sent.events)
    assert any(0 < steps < 5 for of_call in own for steps in of_call.values())
    assert len({one["workflow_id"] for one in hints}) == 1


def test_steps_are_those_of_a_graph_written_by_hand(model: Model) -> None:
    team(model, model.node).invoke({"notes": []})
    check_team(model)


def test_the_same_from_coroutines_and_streams(model: Model) -> None:
    asyncio.run(team(model, model.async_node).ainvoke({"notes": []}))
    check_team(model)


def test_a_loop_back_into_a_join(model: Model) -> None:
    def route(state: State) -> Literal["fixer", "writer"]:
        return "fixer" if "fixer" not in state["notes"] else "writer"

    graph = StateGraph(State)
    for name in ("planner", "coder", "tester", "reviewer", "fixer", "writer"):
        graph.add_node(name, model.node(name))
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "coder")
    graph.add_edge("planner", "tester")
    graph.add_edge(["coder", "tester"], "reviewer")
    graph.add_conditional_edges("reviewer", route)
    graph.add_edge("fixer", "reviewer")
    model.bind(graph.compile()).invoke({"notes": []})
    by_hand = Workflow().edge("planner", "coder").edge("planner", "tester")
    by_hand.edge("coder", "reviewer").edge("tester", "reviewer").node("again", "reviewer")
    for node in ("reviewer", "again"):
        by_hand.edge(node, "fixer", conditional=True).edge(node, "writer", conditional=True)
    by_hand.edge("fixer", "again")
    (own,) = {str(one["step_graph"]): one["step_graph"] for one in model.sent.hints if one}.values()
    steps = steps_of(Workflow.from_dict(own).freeze(), model.sent.events)
    assert steps == steps_of(by_hand.freeze(), model.sent.events)
    assert [of_call["reviewer"] for of_call in steps[:6]] == [2, 1, 1, 1, 1, 0]


def test_each_invocation_is_a_run_and_the_server_is_told_of_its_end(model: Model) -> None:
    def route(state: State) -> Literal["planner", "__end__"]:
        return "planner" if state["notes"].count("planner") % 2 else "__end__"

    graph = StateGraph(State)
    graph.add_node("planner", model.node("planner"))
    graph.add_edge(START, "planner")
    graph.add_conditional_edges("planner", route)
    app = model.bind(graph.compile())
    for _ in range(2):
        app.invoke({"notes": []}, {"configurable": {"thread_id": "t"}})
    runs = list(dict.fromkeys(one["workflow_id"] for one in model.sent.hints if one is not None))
    assert len(runs) == 2
    with run("another") as other:
        model.llm.invoke("hello")
        assert is_known(model, other.id)
    model.http.close()  # waits
    # After its last call, a graph alone would let a run wait for a next round.
    assert not any(is_known(model, run_id) for run_id in (*runs, other.id))


def test_runs_side_by_side_and_names_of_10_000_characters(model: Model) -> None:
    long = "n" * 10_000
    graph = StateGraph(State)
    graph.add_node("planner", model.node("planner"))
    graph.add_node(long, model.node("long"))
    graph.add_edge(START, "planner")
    graph.add_edge("planner", long)
    app = model.bind(graph.compile())
    app.batch([{"notes": []}] * 4)
    agents_of: dict[str, list[str]] = {}
    for hints in model.sent.hints:
        assert hints is not None
        agents_of.setdefault(hints["workflow_id"], []).append(hints["agent_id"])
    assert [len(agents) for agents in agents_of.values()] == [2] * 4
    assert len({tuple(agents) for agents in agents_of.values()}) == 1
    assert model.sent.statuses == ["applied"] * 8


def test_commands_that_name_their_targets_and_some_that_do_not(model: Model) -> None:
    def hand_on(name: str, target: str) -> Any:
        def call(state: State) -> Command:
            return Command(goto=target, update=model.node(name)(state))

        return call

    def named(state: State) -> Command[Literal["writer", "__end__"]]:
        return Command(goto="writer", update=model.node("coder")(state))

    graph = StateGraph(State)
    graph.add_node("planner", hand_on("planner", "coder"))
    graph.add_node("coder", named)
    graph.add_node("writer", model.node("writer"))
    graph.add_edge(START, "planner")
    model.bind(graph.compile()).invoke({"notes": []})
    planner, *_, writer = (one for one in model.sent.hints if one is not None)
    edges = {(edge["source"], edge["target"]) for edge in planner["step_graph"]["edges"]}
    assert edges == {("planner", "coder"), ("coder", "writer"), ("writer", "coder")}
    assert writer["agent_id"] == "writer"
    assert "no edge leads to coder" in model.http.gaps[0]


def test_a_thread_goes_on_after_the_end_of_a_run(model: Model) -> None:
    agent = model.bind(create_agent(model.llm, [], checkpointer=InMemorySaver()))
    cached = []
    for _ in range(4):
        answer = agent.invoke(
            {"messages": [("user", "hello " * 50)]}, {"configurable": {"thread_id": "t"}}
        )["messages"][-1]
        cached.append(answer.usage_metadata["input_token_details"]["cache_read"])
    assert cached == sorted(set(cached))  # the thread's history is read again each time
    sessions = [one.get("session_id") for one in model.sent.hints if one is not None]
    assert sessions == [None, *["t||model"] * 3]


def is_known(model: Model, run_id: str) -> bool:
    """Return whether the server has this run."""
    url = f"{model.llm.root_client.base_url}workflows/{run_id}/advance"
    return httpx2.post(url, json={"completed": []}).status_code == 200


def test_parallel_tasks_of_a_node(model: Model) -> None:
    def spread(state: State) -> list[Send]:
        return [Send("worker", {"notes": []}) for _ in range(3)]

    graph = StateGraph(State)
    for name in ("planner", "worker", "writer"):
        graph.add_node(name, model.node(name))
    graph.add_edge(START, "planner")
    graph.add_conditional_edges("planner", spread, ["worker"])
    graph.add_edge("worker", "writer")
    model.bind(graph.compile()).invoke({"notes": []})
    agents = [one["agent_id"] for one in model.sent.hints if one is not None]
    assert agents == ["planner", "worker", "worker", "worker", "writer"]
    assert len({one["workflow_id"] for one in model.sent.hints if one is not None}) == 1


def test_an_agent_with_tools_is_a_node_that_continues_itself(model: Model) -> None:
    @tool
    def get_weather(city: str) -> str:
        """Return the weather of a city."""
        return f"sunny in {city}"

    agent = create_agent(model.llm, [get_weather], system_prompt="Be brief.")
    model.bind(agent)
    for _ in range(2):
        agent.invoke({"messages": [("user", CALL)]})
    first, second, third, fourth = (one for one in model.sent.hints if one is not None)
    assert first["agent_id"] == second["agent_id"] == "model"
    edges = [(one["source"], one["target"]) for one in first["step_graph"]["edges"]]
    assert edges == [("model", "model")]
    assert [("session_id" in one) for one in (first, second, third, fourth)] == [
        False,
        True,
        True,
        True,
    ]
    assert third["session_id"] == fourth["session_id"] != second["session_id"]


def test_graphs_within_graphs_and_nodes_that_call_no_model(model: Model) -> None:
    inner = StateGraph(State)
    inner.add_node("search", model.node("search"))
    inner.add_node("read", model.node("read"))
    inner.add_edge(START, "search")
    inner.add_edge("search", "read")
    graph = StateGraph(State)
    graph.add_node("planner", model.node("planner"))
    graph.add_node("count", lambda state: {"notes": ["counted"]})
    graph.add_node("researcher", inner.compile())
    graph.add_node("writer", model.node("writer"))
    for source, target in zip(
        (START, "planner", "count", "researcher"),
        ("planner", "count", "researcher", "writer"),
        strict=True,
    ):
        graph.add_edge(source, target)
    app = model.bind(graph.compile())
    for _ in range(2):
        app.invoke({"notes": []})
    hints = [one for one in model.sent.hints if one is not None]
    agents = ["planner", "researcher:search", "researcher:read", "writer"]
    assert [one["agent_id"] for one in hints] == agents * 2
    first, second = hints[0]["step_graph"], hints[4]["step_graph"]
    assert [node["id"] for node in first["nodes"]] != agents
    assert sorted(node["id"] for node in second["nodes"]) == sorted(agents)
    pairs = {(edge["source"], edge["target"]) for edge in second["edges"]}
    assert pairs == set(itertools.pairwise(agents))


def test_a_run_goes_on_after_an_interrupt(model: Model) -> None:
    def ask(state: State) -> dict[str, Any]:
        return {"notes": [interrupt("Go on?")]}

    graph = StateGraph(State)
    graph.add_node("planner", model.node("planner"))
    graph.add_node("ask", ask)
    graph.add_node("writer", model.node("writer"))
    graph.add_edge(START, "planner")
    graph.add_edge("planner", "ask")
    graph.add_edge("ask", "writer")
    app = model.bind(graph.compile(checkpointer=InMemorySaver()))
    thread = {"configurable": {"thread_id": "t"}}
    app.invoke({"notes": []}, thread)
    app.invoke(Command(resume="yes"), thread)
    planner, writer = (one for one in model.sent.hints if one is not None)
    assert planner["workflow_id"] == writer["workflow_id"]


def test_an_app_that_changes_and_one_that_nobody_binds(model: Model) -> None:
    graph = StateGraph(State)
    graph.add_node("planner", model.node("planner"))
    graph.add_edge(START, "planner")
    first = model.bind(graph.compile())
    first.invoke({"notes": []})
    graph.add_node("writer", model.node("writer"))
    graph.add_edge("planner", "writer")
    model.bind(graph.compile()).invoke({"notes": []})
    graph.compile().invoke({"notes": []}, {"configurable": {"thread_id": "t"}})
    before, after, _, alone, _ = (one for one in model.sent.hints if one is not None)
    assert [len(one["step_graph"]["nodes"]) for one in (before, after)] == [1, 2]
    assert alone == {"workflow_id": "t", "agent_id": "planner"}
    assert model.sent.statuses == ["applied"] * 5


def test_an_app_of_the_functional_api_has_runs_and_no_graph(model: Model) -> None:
    @task
    def plan(text: str) -> str:
        return model.llm.invoke(text).text

    @entrypoint()
    def flow(text: str) -> str:
        return plan(text).result() + model.llm.invoke(text).text

    assert model.bind(flow).invoke("hello") == TEXT * 2
    first, second = (one for one in model.sent.hints if one is not None)
    assert [first["agent_id"], second["agent_id"]] == ["flow:plan", "flow"]
    assert first["workflow_id"] == second["workflow_id"]
    assert len(model.http.gaps) == 1


def test_a_run_that_the_program_names(model: Model) -> None:
    app = team(model, model.node)
    with run("task-1"):
        app.invoke({"notes": []})
    hints = [one for one in model.sent.hints if one is not None]
    assert {one["workflow_id"] for one in hints} == {"task-1"}
    assert all("step_graph" in one for one in hints)
    assert model.sent.statuses == ["applied"] * len(hints)


@pytest.mark.parametrize("responses", [False, True])
def test_outside_of_an_app_nothing_is_added(base_url: str, responses: bool) -> None:
    model = Model(base_url, use_responses_api=responses)
    assert model.llm.invoke("hello").text == TEXT
    assert model.sent.hints == [None]
