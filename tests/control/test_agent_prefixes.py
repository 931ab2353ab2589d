"""Fixed prefixes, declared or learned from successive prompts."""

import pytest

from kvflow_jax.control import agent_prefixes
from kvflow_jax.control.agent_prefixes import AGENT_TTL_S, AgentPrefixes
from kvflow_jax.workflow.hints import Hints
from tests.support.agent_cycle import AGENTS, KVFLOW, call, cycle
from tests.support.bare_request import bare_request
from tests.support.token_runner import make_engine

PAGE_SIZE = 4
AGENT = ("tenant", "coder")


def request(prompt, num_fixed=None):
    return bare_request(prompt, hints=Hints(agent_id="coder", num_fixed=num_fixed))


@pytest.fixture
def prefixes():
    return AgentPrefixes(lambda agent: None)


def test_the_first_call_has_no_known_prefix(prefixes):
    assert prefixes.note_call(AGENT, request([1] * 12), PAGE_SIZE, 0.0) == 0


def test_a_prefix_is_learned_in_whole_pages(prefixes):
    prefixes.note_call(AGENT, request([1] * 10 + [2]), PAGE_SIZE, 0.0)
    assert prefixes.note_call(AGENT, request([1] * 10 + [3] * 5), PAGE_SIZE, 1.0) == 8
    assert prefixes.note_call(AGENT, request([9] * 12), PAGE_SIZE, 2.0) == 0


def test_agents_learn_from_their_own_prompts_only(prefixes):
    prefixes.note_call(AGENT, request([1] * 12), PAGE_SIZE, 0.0)
    assert prefixes.note_call(("other", "coder"), request([1] * 12), PAGE_SIZE, 0.0) == 0
    assert list(prefixes) == [AGENT, ("other", "coder")]


def test_a_declared_prefix_goes_before_a_learned_one(prefixes):
    prefixes.note_call(AGENT, request([1] * 12), PAGE_SIZE, 0.0)
    assert prefixes.note_call(AGENT, request([1] * 12, num_fixed=5), PAGE_SIZE, 1.0) == 5
    assert prefixes.note_call(AGENT, request([1] * 12), PAGE_SIZE, 2.0) == 0  # learned from here on


def test_an_agent_without_calls_is_released():
    released = []
    prefixes = AgentPrefixes(released.append)
    prefixes.note_call(("t", "old"), request([1] * 8), PAGE_SIZE, 0.0)
    prefixes.note_call(("t", "new"), request([1] * 8), PAGE_SIZE, 10.0)
    prefixes.expire(AGENT_TTL_S + 5.0)
    assert released == [("t", "old")]
    assert list(prefixes) == [("t", "new")]


def test_the_number_of_agents_is_bounded(monkeypatch):
    monkeypatch.setattr(agent_prefixes, "MAX_AGENTS", 2)
    released = []
    prefixes = AgentPrefixes(released.append)
    for name in ("a", "b", "a", "c"):
        prefixes.note_call(("t", name), request([1] * 8), PAGE_SIZE, 0.0)
    assert released == [("t", "b")]  # called least recently


def test_a_fixed_prefix_that_no_caller_declares_is_learned_and_kept():
    engine = make_engine(num_pages=32, cache=KVFLOW)
    graph = cycle()
    for turn in range(4):
        for agent in AGENTS:
            client = call(engine, agent, turn, graph, num_fixed=None)
    assert client.stats.num_cached_tokens >= 32
