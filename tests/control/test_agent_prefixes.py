"""Fixed prefixes, declared or learned from successive prompts."""

import pytest

from kvflow_jax.bounds.tenant_lru import ENTRY_BYTES
from kvflow_jax.control.agent_prefixes import AGENT_TTL_S, AgentPrefixes
from kvflow_jax.control.readers import AgentReader
from kvflow_jax.workflow.hints import Hints
from tests.support.agent_cycle import AGENTS, KVFLOW, call, cycle
from tests.support.bare_request import bare_request
from tests.support.token_runner import make_engine

PAGE_SIZE = 4
AGENT = AgentReader("tenant", "coder")
OTHER = AgentReader("other", "coder")


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
    assert prefixes.note_call(OTHER, request([1] * 12), PAGE_SIZE, 0.0) == 0
    assert list(prefixes) == [AGENT, OTHER]


def test_a_declared_prefix_goes_before_a_learned_one(prefixes):
    prefixes.note_call(AGENT, request([1] * 12), PAGE_SIZE, 0.0)
    assert prefixes.note_call(AGENT, request([1] * 12, num_fixed=5), PAGE_SIZE, 1.0) == 5
    assert prefixes.note_call(AGENT, request([1] * 12), PAGE_SIZE, 2.0) == 0  # learned from here on


def test_an_agent_without_calls_is_released():
    released = []
    prefixes = AgentPrefixes(released.append)
    prefixes.note_call(AgentReader("t", "old"), request([1] * 8), PAGE_SIZE, 0.0)
    prefixes.note_call(AgentReader("t", "new"), request([1] * 8), PAGE_SIZE, 10.0)
    prefixes.expire(AGENT_TTL_S + 5.0)
    assert released == [AgentReader("t", "old")]
    assert list(prefixes) == [AgentReader("t", "new")]


def test_the_bytes_of_a_tenants_agents_are_bounded():
    released = []
    prefixes = AgentPrefixes(released.append, max_bytes=2 * (ENTRY_BYTES + 1100))
    prefixes.note_call(OTHER, request([1] * 8), PAGE_SIZE, 0.0)
    for name in ("a", "b", "a", "c"):
        prefixes.note_call(AgentReader("t", name), request([1] * 8), PAGE_SIZE, 0.0)
    assert released == [AgentReader("t", "b")]  # called least recently
    prefixes.note_call(AgentReader("t", "d"), request([1] * 2000), PAGE_SIZE, 0.0)
    assert released[1:] == [AgentReader("t", "a"), AgentReader("t", "c")]  # for its hashes
    assert list(prefixes) == [OTHER, AgentReader("t", "d")]


def test_a_fixed_prefix_that_no_caller_declares_is_learned_and_kept():
    engine = make_engine(num_pages=32, cache=KVFLOW)
    graph = cycle()
    for turn in range(4):
        for agent in AGENTS:
            client = call(engine, agent, turn, graph, num_fixed=None)
    assert client.stats.num_cached_tokens >= 32
