"""The app of agents, over fakes of LangGraph's and LangChain's classes."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from experiments.zero_hints import langgraph_team as team

START, END = "__start__", "__end__"


class FakeGraph:
    """Runs nodes in steps: edges, joins and one kind of router, as LangGraph does."""

    def __init__(self, state):
        self.nodes, self.edges, self.joins, self.routers = {}, [], [], {}

    def add_node(self, name, function):
        self.nodes[name] = function

    def add_edge(self, source, target):
        (self.joins if isinstance(source, list) else self.edges).append((source, target))

    def add_conditional_edges(self, source, router):
        self.routers[source] = router

    def compile(self):
        return self

    def invoke(self, state):
        arrived, active = set(), self._after([START], state)
        while active:
            assert active <= set(self.nodes)
            for update in [self.nodes[name](dict(state)) for name in sorted(active)]:
                state["answers"] = state["answers"] | update["answers"]
                state["num_rounds"] += update["num_rounds"]
            arrived |= active
            active = self._after(active, state)
            for sources, target in self.joins:
                if arrived >= set(sources):
                    arrived -= set(sources)
                    active.add(target)
        return state

    def _after(self, names, state):
        found = {target for source, target in self.edges if source in names}
        return found | {self.routers[name](state) for name in names if name in self.routers} - {END}


class FakeClient:
    bound = None

    def bind(self, app):
        self.bound = app


@pytest.fixture
def prompts(monkeypatch):
    """Replaces the frameworks; returns (model's settings, messages) of each call."""
    made = []

    class FakeModel:
        def __init__(self, **settings):
            self.settings = settings

        def invoke(self, messages):
            made.append((self.settings, messages))
            usage = {"input_tokens": 100, "input_token_details": {"cache_read": len(made)}}
            return SimpleNamespace(text=f"answer {len(made)}", usage_metadata=usage)

    modules = {"langgraph.graph": {"START": START, "StateGraph": FakeGraph}}
    modules |= {"langgraph": {}, "langchain_openai": {"ChatOpenAI": FakeModel}}
    for name, attributes in modules.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    return made


def run(command, *flags):
    status, out, _ = command(team, "--url=http://server", "--model=m", "--rules=2", *flags)
    assert status == 0
    return json.loads(out)


def test_a_run_has_three_rounds_of_all_agents(command, prompts):
    ran = run(command, "--runs=2")
    one_round = ["planner", *sorted(team.RESEARCHERS), "writer", "reviewer"]
    assert [call["agent"] for call in ran["calls"]] == one_round * 3 * 2
    assert [call["run"] for call in ran["calls"]] == [0] * 18 + [1] * 18
    assert ran["calls"][4] == {
        **{"run": 0, "agent": "writer"},
        **{"prompt_tokens": 100, "cached_tokens": 5},
    }
    assert ran["seconds"] > 0


def test_an_agent_has_its_own_system_prompt_and_reads_those_before(command, prompts):
    run(command, "--runs=1")
    systems = {messages[0] for _, messages in prompts}
    assert len(systems) == 6
    assert all(text.count("Rule") == 2 for _, text in systems)
    users = [messages[1][1].splitlines() for _, messages in prompts[:7]]
    question = users[0][0]
    assert users[0] == [question]
    assert users[1] == users[2] == users[3] == [question, "answer 1"]
    assert sorted(users[4][1:]) == ["answer 2", "answer 3", "answer 4"]
    assert users[6] == [question, "answer 6"]  # the planner, of what the reviewer said


def test_the_client_is_the_only_difference_with_hints(command, prompts, monkeypatch):
    client = FakeClient()
    monkeypatch.setattr(team, "http_client", lambda: client)
    run(command, "--runs=1")
    plain = prompts[0][0]
    assert client.bound is None
    run(command, "--runs=1", "--hints")
    assert isinstance(client.bound, FakeGraph)
    assert plain["http_client"] is None
    assert prompts[-1][0] == {**plain, "http_client": client}


def test_a_call_that_fails_is_one_line(command, prompts, monkeypatch):
    def fail(model, messages):
        raise ConnectionError("no\nserver")

    monkeypatch.setattr(sys.modules["langchain_openai"].ChatOpenAI, "invoke", fail)
    with pytest.raises(SystemExit, match=r"^ConnectionError: no server$"):
        run(command, "--runs=1")


def test_missing_packages_are_told_apart(command, monkeypatch):
    monkeypatch.setattr(team, "PACKAGES", ("pytest", "no-such-package"))
    status, out, _ = command(team, "--versions")
    assert status == 0
    assert json.loads(out) == {"versions": {"pytest": pytest.__version__, "no-such-package": None}}
